//! The fan-out: which encoder gets which items, and what it is sent.

use std::borrow::Cow;
use std::future::poll_fn;
use std::task::Poll;

use sha2::{Digest, Sha256};

use crate::error::Stage;
use crate::exchange::{Exchange, Leg, Request};
use crate::wire::canonical;
use crate::wire::json::{Piece, put_string, string_value};
use crate::wire::media::{Item, Kind};

/// Bytes that are hashed in one go: the shard's other requests come in between.
const HASHED_AT_ONCE: usize = 512 << 10;

/// One request to an encoder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    /// Its place among the encoders that take part.
    pub encoder: usize,
    /// Places of its items.
    pub items: Vec<usize>,
}

/// Where encodings are to be pushed to.
pub struct Push {
    pub address: String,
}

/// Item `k` goes to encoder `base + k`, in turn; images for one encoder go together, at most `most` of them
/// (0: any number).
pub fn batches(items: &[Item], base: usize, encoders: usize, most: usize) -> Vec<Batch> {
    let mut all: Vec<Batch> = Vec::new();
    // The batch of each encoder that may still grow.
    let mut open: Vec<Option<usize>> = vec![None; encoders];
    for (k, item) in items.iter().enumerate() {
        let encoder = base.wrapping_add(k) % encoders;
        if item.kind == Kind::Image
            && let Some(at) = open[encoder]
            && (most == 0 || all[at].items.len() < most)
        {
            all[at].items.push(k);
            continue;
        }
        if item.kind == Kind::Image {
            open[encoder] = Some(all.len());
        }
        all.push(Batch {
            encoder,
            items: vec![k],
        });
    }
    all
}

/// One for each item: 32 hexadecimal digits that nobody else has.
pub fn transfer_ids(x: &Exchange, count: usize) -> Vec<String> {
    let word = || x.tools.rng.next();
    (0..count)
        .map(|_| format!("{:016x}{:016x}", word(), word()))
        .collect()
}

/// What a client may say of its media that an encoder must know.
const PASSED_ON: [&str; 4] = [
    "mm_processor_kwargs",
    "media_io_kwargs",
    "priority",
    "session_id",
];

/// `to`: where it is to be pushed, and the transfer's id for each item.
pub fn leg(
    request: &Request,
    items: &[Item],
    batch: &Batch,
    names: &[Option<String>],
    to: Option<(&Push, &[String])>,
    one_token: bool,
) -> Leg {
    let body = request.body();
    let mut pieces = vec![Piece::Own(Cow::Borrowed(br#"{"model":"#))];
    pieces.push(match request.object.range(body, "model") {
        Some(range) => Piece::Source(range),
        None => Piece::Own(Cow::Borrowed(b"null")),
    });
    let own = |text: &'static [u8]| Piece::Own(Cow::Borrowed(text));
    pieces.push(own(br#","messages":[{"role":"user","content":["#));
    for (n, i) in batch.items.iter().enumerate() {
        if n > 0 {
            pieces.push(own(b","));
        }
        pieces.extend(items[*i].pieces(names[*i].as_deref()));
    }
    pieces.push(own(match one_token {
        true => br#"]}],"max_tokens":1,"stream":false"#,
        false => br#"]}],"stream":false"#,
    }));
    if !one_token {
        for key in PASSED_ON {
            if let Some(range) = request.object.range(body, key) {
                pieces.push(Piece::Own(Cow::Owned(format!(",\"{key}\":").into())));
                pieces.push(Piece::Source(range));
            }
        }
    }
    let mut end = Vec::new();
    if let Some((push, ids)) = to {
        end.extend_from_slice(br#","ec_transfer_params":{"consumer_zmq":"#);
        put_string(&mut end, &push.address);
        end.extend_from_slice(br#","ec_items":["#);
        for (n, i) in batch.items.iter().enumerate() {
            let comma = if n > 0 { "," } else { "" };
            let item = format!(r#"{comma}{{"transfer_id":"{}"}}"#, ids[*i]);
            end.extend_from_slice(item.as_bytes());
        }
        end.extend_from_slice(b"]}");
    }
    end.push(b'}');
    pieces.push(Piece::Own(Cow::Owned(end)));
    let mut leg = Leg::new(Stage::Encode);
    leg.pieces = Some(pieces);
    leg.path = Some("/v1/chat/completions".into());
    leg.plain_answer = true;
    leg
}

/// Gives the leg an id that tells it from its sisters: the request's, the first item's place, and chance.
pub fn named(x: &Exchange, mut leg: Leg, batch: &Batch) -> Leg {
    let chance = x.tools.rng.next() & 0xff_ffff;
    let id = format!("{}:{}:{chance:06x}", x.request().id, batch.items[0]);
    leg.id = Some(id.into());
    leg
}

/// The name of an item without one: SHA-256 of its url, else of the whole item.
pub async fn digest(body: &[u8], item: &Item) -> String {
    let mut hash = Sha256::new();
    let url = item
        .url
        .clone()
        .and_then(|range| string_value(&body[range]));
    match url {
        Some(url) => {
            for (n, part) in url.chunks(HASHED_AT_ONCE).enumerate() {
                if n > 0 {
                    step_aside().await;
                }
                hash.update(part);
            }
        }
        None => canonical::put_sorted(&body[item.whole.clone()], &mut |part| hash.update(part)),
    }
    let mut name = String::with_capacity(64);
    for byte in hash.finalize() {
        for digit in [byte >> 4, byte & 15] {
            name.push(char::from_digit(digit.into(), 16).unwrap_or('0'));
        }
    }
    name
}

/// Lets whatever else waits on this shard go first, once.
async fn step_aside() {
    let mut aside = false;
    poll_fn(|cx| {
        if std::mem::replace(&mut aside, true) {
            return Poll::Ready(());
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn item(kind: Kind) -> Item {
        Item {
            kind,
            form: crate::wire::media::Form::Chat,
            whole: 0..0,
            uuid: None,
            url: None,
        }
    }

    fn shared_out(
        kinds: &[Kind],
        base: usize,
        encoders: usize,
        most: usize,
    ) -> Vec<(usize, Vec<usize>)> {
        let items: Vec<Item> = kinds.iter().map(|kind| item(*kind)).collect();
        let batches = batches(&items, base, encoders, most);
        batches.into_iter().map(|b| (b.encoder, b.items)).collect()
    }

    #[test]
    fn items_go_in_turn_and_images_together() {
        use Kind::{Audio as A, Image as I, Video as V};
        assert_eq!(
            shared_out(&[I, I, I], 0, 2, 1),
            [(0, vec![0]), (1, vec![1]), (0, vec![2])]
        );
        assert_eq!(
            shared_out(&[I, I, I], 0, 2, 0),
            [(0, vec![0, 2]), (1, vec![1])]
        );
        assert_eq!(
            shared_out(&[I, I, I], 5, 2, 0),
            [(1, vec![0, 2]), (0, vec![1])]
        );
        assert_eq!(
            shared_out(&[I; 5], 0, 1, 2),
            [(0, vec![0, 1]), (0, vec![2, 3]), (0, vec![4])]
        );
        assert_eq!(
            shared_out(&[I, A, I, V, V], 0, 1, 0),
            [(0, vec![0, 2]), (0, vec![1]), (0, vec![3]), (0, vec![4])]
        );
        // The turn may be at its end.
        assert_eq!(
            shared_out(&[I, I], usize::MAX, 2, 1),
            [(1, vec![0]), (0, vec![1])]
        );
    }
}
