//! LMCache's worst days: notices that do not come, come late, twice, or from another time.

mod defects_of_the_original_never_come_back;
mod notices_never_get_lost;
mod ports_never_overlap;

pub const TEXT: &str = "a prompt that is longer than a block of sixteen tokens, by far";
