//! The rows of `multiturn`.

use super::{At, Row, Section, put, read_word};
use crate::config::{Multiturn, RedisAddress, RemoteHost};

pub static MULTITURN: Section<Multiturn> = Section {
    name: "multiturn",
    rows: rows! {
        "ttl" => |m, at| put(&mut m.ttl, at.duration()),
        "entries_max" => |m, at| put(&mut m.entries_max, at.integer(1..=16_777_216)),
        "bytes_max" => |m, at| put(&mut m.bytes_max, at.bytes(64 << 10..=1 << 40)),
        "expose_kv_params" => |m, at| put(&mut m.expose_kv_params, at.boolean()),
        "remote_host" => |m, at| put(&mut m.remote_host, read_word(at, &REMOTE_HOSTS)),
        "redis" => |m, at| if !at.is_null() { m.redis = read_redis(at) },
        "redis_timeout" => |m, at| put(&mut m.redis_timeout, at.duration()),
    },
};

const REMOTE_HOSTS: (&str, &[(&str, RemoteHost)]) = (
    "'dialled' or 'as_given'",
    &[
        ("dialled", RemoteHost::Dialled),
        ("as_given", RemoteHost::AsGiven),
    ],
);

fn read_redis(at: &mut At) -> Option<RedisAddress> {
    match RedisAddress::parse(at.text()?) {
        Ok(address) => Some(address),
        Err(why) => {
            at.fail(why, "or leave it out: each proxy then keeps its own");
            None
        }
    }
}
