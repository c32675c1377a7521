//! One image per request is the most common case. The first version sends all of those to the first encoder
//! (vllm#52484); from the second on, turns go on from one request to the next, over all shards.

use pdsim::EcMode;

use super::{CHAT, engines, epd, url, with_media};

fn shares(ec: EcMode, version: pdrelay::config::epd::Version) -> Vec<usize> {
    let rig = epd(engines(4, 0, 0, ec), |c| c.epd.version = version);
    let sent = with_media(&[&url("http://h/a")], "");
    for _ in 0..16 {
        assert_eq!(rig.post(CHAT, &sent).status, 200);
    }
    (0..4).map(|engine| rig.posts(engine).len()).collect()
}

#[test]
fn single_images_are_shared_out() {
    use pdrelay::config::epd::Version::{V1, V2, V3};
    assert_eq!(shares(EcMode::V2, V3), [4, 4, 4, 4]);
    assert_eq!(shares(EcMode::V2, V2), [4, 4, 4, 4]);
    // As its engines may rely on; what is wrong with it is why there are others.
    assert_eq!(shares(EcMode::V1, V1), [16, 0, 0, 0]);
}
