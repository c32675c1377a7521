//! Legs that run beside the script and whose answer nobody waits for.
//!
//! * **For:** a P that works while D does, and tells D by itself.
//! * **Must never:** end with the client: P would be cut off in a transfer that D still reads.
//! * **To extend:** there is nothing to extend: a leg whose answer matters is a branch that is awaited.

use crate::exchange::{Exchange, Leg, Picked, Stop};
use crate::log;

/// Sends the leg and lets it run to its end; a failure is counted where all are, and logged.
pub fn send(x: &Exchange, picked: Picked, leg: Leg) {
    let aside = x.detached();
    let place = picked.instance().name.clone();
    monoio::spawn(async move {
        let why = match aside.open(picked, leg).await {
            Ok(opened) => match aside.read_off(opened).await {
                Ok(status) if status < 400 => return,
                Ok(status) => format!("answered {status}"),
                Err(Stop::Error(error) | Stop::Again(error)) => error.to_string(),
                Err(_) => return,
            },
            Err(Stop::Error(error) | Stop::Again(error)) => error.to_string(),
            Err(Stop::Answer(answer)) => format!("answered {}", answer.head.status),
            Err(Stop::Said(_) | Stop::Broken(_)) => return,
        };
        log::limited_for("aside", &place, log::Level::Warning, || {
            format!("prefill {place} failed a request that decode is waiting for: {why}")
        });
    });
}
