//! An overlay: changes to the client's body that an outer handshake has made, and that every leg of the
//! inner one carries without knowing of them. A leg's own edits count where both speak of one member.

use super::Leg;
use crate::config::Role;
use crate::wire::json::{self, Edit, Object, Patch, Pieces};

#[derive(Debug, Default)]
pub struct Overlay {
    pub edits: Vec<Edit>,
    /// In the order of their places.
    pub patches: Vec<Patch>,
    /// Head fields of legs to instances of a role, sent instead of the client's of the same name.
    pub fields: Vec<(Role, &'static str, Vec<u8>)>,
}

impl Overlay {
    pub fn is_empty(&self) -> bool {
        self.edits.is_empty() && self.patches.is_empty() && self.fields.is_empty()
    }

    /// The leg's body.
    pub(super) fn pieces<'a>(&self, body: &[u8], object: &Object, leg: &Leg) -> Pieces<'a> {
        let mut edits = leg.edits.clone();
        let spoken = |key: &str| leg.edits.iter().any(|edit| edit.key() == key);
        let more = self.edits.iter().filter(|edit| !spoken(edit.key()));
        edits.extend(more.cloned());
        let pieces = json::patch(json::splice(body, object, &edits), &self.patches);
        pieces.into_iter().map(|piece| piece.into_owned()).collect()
    }

    /// What the head of a leg to this role has besides.
    pub(super) fn fields(&self, role: Role) -> impl Iterator<Item = (&'static str, &[u8])> {
        let of_role = self.fields.iter().filter(move |(of, ..)| *of == role);
        of_role.map(|(_, name, value)| (*name, value.as_slice()))
    }
}
