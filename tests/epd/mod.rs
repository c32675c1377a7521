//! vLLM's EPD proxy as its users know it: its face, its failures, its command line. Transcripts of the
//! handshake are in `handshakes/epd.rs`.

mod chains_never_lose_the_media;
mod command_lines_never_stop_working;
mod departed_clients_never_keep_encoders_busy;
mod encoder_failures_never_change_on_their_way;
mod first_encoders_never_run_hot;
mod large_media_never_slow_a_request;
mod pages_never_change_their_shape;
mod registrations_never_get_lost;
mod responses_never_lose_their_media;

pub use crate::handshakes::epd::{engines, epd, url, with_media};

const CHAT: &str = "/v1/chat/completions";
