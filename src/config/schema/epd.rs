//! The `epd:` section.

use super::{Row, Section, above_none, put, read_word};
use crate::config::epd::{Epd, Version};

const VERSIONS: (&str, &[(&str, Version)]) = (
    "'v1', 'v2' or 'v3'",
    &[
        ("v1", Version::V1),
        ("v2", Version::V2),
        ("v3", Version::V3),
    ],
);

pub static EPD: Section<Epd> = Section {
    name: "epd",
    rows: rows! {
        "version" => |e, at| put(&mut e.version, read_word(at, &VERSIONS)),
        "then" => |e, at| if !at.is_null() { e.then = at.text().map(Into::into) },
        "rewrite" => |e, at| put(&mut e.rewrite, at.boolean()),
        "encoder_batch_max" => |e, at| put(&mut e.encoder_batch_max, at.integer(0..=65_536)),
        "media_max" => |e, at| put(&mut e.media_max, at.integer(1..=65_536)),
        "dynamic_registration" => |e, at| put(&mut e.dynamic_registration, at.boolean()),
        "evicted_ttl" => |e, at| put(&mut e.evicted_ttl, at.duration_or_zero().map(above_none)),
    },
};
