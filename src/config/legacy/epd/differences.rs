//! What is different on pdrelay from vLLM's EPD proxy: what `pdrelay migrate` comments.

use crate::config::write::Note;

const MADE: &str = "\
    Made by `pdrelay migrate epd`. Check it with `pdrelay check -c FILE`, start it with \
    `pdrelay serve -c FILE`. Comments say what is different from the EPD proxy.";
const EVERYWHERE: &str = "\
    Everywhere: no 200 before decode has answered, and an engine's error keeps its status; a \
    client that leaves is noticed in every stage; the client's head fields go to the engines; \
    bodies are passed on byte by byte. An engine that is down gets nothing.";
const SURFACE: &str = "The paths and error bodies of the EPD proxy. Remove it for pdrelay's own.";
const RETRY: &str = "\
    The whole plan again, with fresh ids: when decode or prefill answers 500 (the original: \
    decode only), or is lost before its answer.";
const TIMEOUTS: &str = "\
    The original waits for more than a day; here every wait has an end \
    (configs/reference.yaml shows them).";

pub fn notes() -> Vec<Note> {
    vec![
        Note::on("", MADE),
        Note::on("", EVERYWHERE),
        Note::on("surface", SURFACE),
        Note::on("retry", RETRY),
        Note::on("timeouts", TIMEOUTS),
    ]
}
