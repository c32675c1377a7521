//! D's usage on its way to the client, with what P said of its cache.

use crate::wire::usage::Corrected;

use super::rewrite::Rewrite;

impl Rewrite for Corrected {
    fn feed(&mut self, payload: &[u8], out: &mut Vec<u8>) {
        Corrected::feed(self, payload, out);
    }

    fn finish(&mut self, out: &mut Vec<u8>) {
        Corrected::finish(self, out);
    }
}
