//! A sidecar's requests: a header says which P (and which encoders) serve one, and D is the engine next to us.
//!
//! What a header may name is judged here, once per request; scripts then `pick` as they always do.

use std::cell::{Cell, RefCell};
use std::io;
use std::rc::Rc;
use std::sync::{Arc, OnceLock};

use crate::cluster::guest::Guests;
use crate::cluster::kubernetes::Members;
use crate::cluster::{Cluster, Instance};
use crate::config::sidecar::{Generation, Sidecar};
use crate::config::{Address, Config, Role, Url};
use crate::error::{Error, Kind, Stage};
use crate::id;
use crate::log;
use crate::net::stream::Stream;
use crate::net::tls::Trust;
use crate::shared::{Published, Snapshot};
use crate::wire::cap::{self, Api};
use crate::wire::json::{Edit, put_string};
use crate::wire::openai::KV_PARAMS;

use super::send::put_field;
use super::{Exchange, Request};

pub const PREFILL: &str = "x-prefiller-host-port";
pub const PREFILL_URL: &str = "x-prefiller-url";
pub const ENCODE: &str = "x-encoder-hosts-ports";
pub const CACHE_SOURCE: &str = "x-kv-cache-source-host-port";
pub const DATA_PARALLEL: &str = "x-data-parallel-host-port";

/// These are for us, and no engine sees them.
const HIDDEN: [&str; 4] = [PREFILL, PREFILL_URL, ENCODE, CACHE_SOURCE];
const FORWARDED_FOR: &str = "x-forwarded-for";

const DENIED: &str = "Forbidden: prefill target not allowed by SSRF protection";

/// Process-wide: the instances that headers have named, and how they are reached.
pub struct Hosts {
    pub guests: Guests,
    /// The pods of the InferencePool, if that is who may be named.
    pub members: Arc<Published<Members>>,
    pub trust: TrustOf,
}

/// Whose certificates are believed, by role.
#[derive(Default)]
pub struct TrustOf {
    roles: [OnceLock<Trust>; Role::ALL.len()],
}

impl TrustOf {
    /// Reads files: not for a shard.
    pub fn load(&self, config: &Config) -> io::Result<()> {
        let upstream = &config.upstream_tls;
        let mut authorities = None;
        for role in Role::ALL {
            let trust = match upstream.skip_verify.contains(&role) {
                true => Trust::anyone()?,
                false => match &authorities {
                    Some(trust) => Trust::clone(trust),
                    None => {
                        let trust = Trust::authorities(upstream.ca_file.as_deref())?;
                        authorities.insert(trust).clone()
                    }
                },
            };
            // The first stands: certificates are read at the start.
            _ = self.roles[role as usize].set(trust);
        }
        Ok(())
    }
}

impl Hosts {
    /// Tells the instances behind TLS whom to believe, for their probes. Reads files, the first time.
    pub fn prepare(&self, config: &Config, cluster: &Cluster) -> io::Result<()> {
        for instance in cluster.instances.iter().filter(|one| one.address.tls()) {
            let known = &self.trust.roles[instance.role as usize];
            if known.get().is_none() {
                self.trust.load(config)?;
            }
            if let Some(trust) = known.get() {
                _ = instance.trust.set(trust.clone());
            }
        }
        Ok(())
    }

    /// TLS on a fresh connection to this instance.
    pub async fn secure(&self, plain: Stream, instance: &Instance) -> io::Result<Stream> {
        let none = || io::Error::other("TLS to engines is not set up: restart with it configured");
        let trust = self.trust.roles[instance.role as usize].get();
        let host = instance.address.network().map_or("", |(host, _)| host);
        trust.ok_or_else(none)?.connect(plain, host).await
    }
}

/// Who serves one request.
pub struct Pins {
    sidecar: Snapshot<Config>,
    /// The engine next to us; `None`: as the policy picks.
    decode: RefCell<Option<Arc<Instance>>>,
    prefill: RefCell<Option<Arc<Instance>>>,
    pub encoders: RefCell<Vec<Arc<Instance>>>,
    /// From whom a cached prefix may be pulled.
    pub source: RefCell<Option<(String, u16)>>,
    /// Changes of the body that all legs from now on have: what encoders have said.
    pub edits: RefCell<Vec<Edit>>,
    /// What P said of its cache.
    pub cached_tokens: Cell<u64>,
}

impl Pins {
    pub(super) fn of(
        config: &Snapshot<Config>,
        cluster: &Cluster,
        request: &Request,
    ) -> Option<Rc<Pins>> {
        config.sidecar.as_ref()?;
        let decode = cluster.role(Role::Decode);
        let decode = match decode.len() {
            0 | 1 => decode.first(),
            _ => decode.get(usize::from(request.door)),
        };
        Some(Rc::new(Pins {
            sidecar: config.clone(),
            decode: RefCell::new(decode.cloned()),
            prefill: RefCell::default(),
            encoders: RefCell::default(),
            source: RefCell::default(),
            edits: RefCell::default(),
            cached_tokens: Cell::new(0),
        }))
    }

    pub fn sidecar(&self) -> &Sidecar {
        match &self.sidecar.sidecar {
            Some(sidecar) => sidecar,
            None => unreachable!("there are pins only beside an engine"),
        }
    }

    pub(super) fn instance(&self, role: Role) -> Option<std::cell::Ref<'_, Arc<Instance>>> {
        let place = match role {
            Role::Prefill => &self.prefill,
            Role::Decode => &self.decode,
            Role::Encode | Role::Aggregated => return None,
        };
        std::cell::Ref::filter_map(place.borrow(), Option::as_ref).ok()
    }

    pub fn prefill(&self) -> Option<Arc<Instance>> {
        self.prefill.borrow().clone()
    }

    /// Is there a P?
    pub fn prefills(&self) -> bool {
        self.prefill.borrow().is_some()
    }

    pub(super) fn prefill_edits(&self, request: &Request) -> Vec<Edit> {
        let min = self.sidecar().generation >= Generation::G3;
        let mut edits = cap::edits(
            Api::of(request.path()),
            min,
            request.body(),
            &request.object,
        );
        edits.push(Edit::Remove(KV_PARAMS));
        self.add_edits(&mut edits);
        edits
    }

    /// What encoders have said goes into every later body; where a leg says otherwise, that stands.
    pub fn add_edits(&self, edits: &mut Vec<Edit>) {
        for edit in self.edits.borrow().iter() {
            if !edits.iter().any(|own| own.key() == edit.key()) {
                edits.push(edit.clone());
            }
        }
    }
}

impl Exchange {
    /// Reads who is to serve it. The error is the client's: a header that names nobody, or somebody whom it
    /// must not.
    pub fn read_pins(&self) -> Result<(), Error> {
        let Some(pins) = &self.pins else {
            return Ok(());
        };
        let sidecar = pins.sidecar();
        let request = self.request();
        self.read_rank(pins, &request)?;
        if let Some(address) = self.prefill_named(&request, sidecar)? {
            if !self.admits(sidecar, &address) {
                let name = address.to_string();
                log::limited("denied", log::Level::Warning, || {
                    format!("prefill {name} is not among those that may be named")
                });
                return Err(Error::new(Kind::Forbidden, Stage::Prefill, DENIED));
            }
            let instance = self.tools.hosts.guests.at(Role::Prefill, &address);
            *pins.prefill.borrow_mut() = Some(instance);
        }
        if sidecar.generation == Generation::G1 {
            return Ok(());
        }
        let named = listed(&request, ENCODE);
        let mut encoders = pins.encoders.borrow_mut();
        for text in named {
            match place(&text, sidecar.encode_tls) {
                Ok(address) if self.admits(sidecar, &address) => {
                    encoders.push(self.tools.hosts.guests.at(Role::Encode, &address));
                }
                _ => log::limited("encoder", log::Level::Warning, || {
                    format!("encoder {text} is passed over: it is no place that may be named")
                }),
            }
        }
        if sidecar.generation >= Generation::G3 {
            let source = listed(&request, CACHE_SOURCE).into_iter().next();
            let source = source.and_then(|text| place(&text, false).ok());
            let source = source.filter(|address| self.admits(sidecar, address));
            let source = source.and_then(|a| a.network().map(|(h, p)| (h.to_owned(), p)));
            *pins.source.borrow_mut() = source;
        }
        Ok(())
    }

    fn prefill_named(
        &self,
        request: &Request,
        sidecar: &Sidecar,
    ) -> Result<Option<Address>, Error> {
        let mut named = listed(request, PREFILL);
        if named.is_empty() {
            named = listed(request, PREFILL_URL);
        }
        let sampled = sidecar.sample_prefill && sidecar.generation > Generation::G1;
        let at = match sampled && named.len() > 1 {
            true => (self.tools.rng.next() % named.len() as u64) as usize,
            false => 0,
        };
        let Some(text) = named.get(at) else {
            return Ok(None);
        };
        place(text, sidecar.prefill_tls).map(Some).map_err(|why| {
            let what = format!("{PREFILL} names no prefill instance: {why}");
            Error::new(Kind::BadRequest, Stage::Prefill, what)
        })
    }

    /// The old way of saying which rank is meant.
    fn read_rank(&self, pins: &Pins, request: &Request) -> Result<(), Error> {
        let sidecar = pins.sidecar();
        let ranks = self.cluster.role(Role::Decode);
        let field = request.head.fields.get(request.head_bytes(), DATA_PARALLEL);
        let (Some(field), true) = (field, ranks.len() > 1) else {
            return Ok(());
        };
        if sidecar.generation == Generation::G1 {
            return Ok(());
        }
        let Some(ip) = sidecar.pod_ip else {
            return Ok(());
        };
        for (rank, instance) in ranks.iter().enumerate() {
            let port = self.config.port as usize + rank;
            if format!("{ip}:{port}").as_bytes() == field.trim_ascii() {
                *pins.decode.borrow_mut() = Some(instance.clone());
                return Ok(());
            }
        }
        let what = format!("{DATA_PARALLEL} names no rank of this pod");
        Err(Error::new(Kind::BadRequest, Stage::Body, what))
    }

    /// `remote_kv_source` for a leg: from whom it may pull a cached prefix, unless that is `but`.
    pub fn kv_source(&self, but: Option<&Arc<Instance>>) -> Option<String> {
        let pins = self.pins.as_ref()?;
        let source = pins.source.borrow();
        let (host, port) = source.as_ref()?;
        let same = |(other, its): (&str, u16)| other == host && its == *port;
        if but.and_then(|one| one.address.network()).is_some_and(same) {
            return None;
        }
        let sidecar = pins.sidecar();
        let ours = sidecar.pod_ip.is_some_and(|ip| ip.to_string() == *host);
        let ranks = self.cluster.role(Role::Decode).len() as u16;
        let rank = port.checked_sub(self.config.port).filter(|r| *r < ranks);
        if ours && rank.is_some() && but.is_none() {
            return None;
        }
        let mut out = format!(
            r#"{{"kv_request_id":"{}","remote_host":"#,
            id::fresh(&self.tools.rng)
        )
        .into_bytes();
        put_string(&mut out, host);
        let port = sidecar.p2p_port.saturating_add(rank.unwrap_or(0));
        out.extend_from_slice(format!(r#","remote_port":{port}}}"#).as_bytes());
        String::from_utf8(out).ok()
    }

    fn admits(&self, sidecar: &Sidecar, address: &Address) -> bool {
        let (Some(allow), Some((host, port))) = (&sidecar.allow, address.network()) else {
            return sidecar.allow.is_none();
        };
        allow.targets.iter().any(|target| target.admits(host, port))
            || (allow.pool.is_some() && self.tools.hosts.members.get().admit(host, port))
    }
}

/// All values of a field: of several lines, and of lists with commas.
fn listed(request: &Request, name: &str) -> Vec<String> {
    let head = request.head_bytes();
    let fields = request.head.fields.iter();
    let fields = fields.filter(|f| f.name(head).eq_ignore_ascii_case(name.as_bytes()));
    let values = fields.flat_map(|f| f.value(head).split(|b| *b == b','));
    let texts = values.map(|value| String::from_utf8_lossy(value.trim_ascii()).into_owned());
    texts.filter(|text| !text.is_empty()).collect()
}

/// Does this request name a P, encoders, or a source of cached prefixes?
pub fn named(head: &crate::wire::head::RequestHead, bytes: &[u8]) -> bool {
    HIDDEN.iter().any(|name| {
        let value = head.fields.get(bytes, name);
        value.is_some_and(|value| !value.trim_ascii().is_empty())
    })
}

/// `host:port`, with or without a scheme, which then says whether TLS is spoken.
fn place(text: &str, tls: bool) -> Result<Address, String> {
    let address = Address::parse_url(text)?;
    let (host, port) = match &address {
        Address::Unix(_) => return Err(format!("'{text}' is no host:port")),
        Address::Tcp { host, port } => (host.clone(), *port),
        Address::Url(url) if !url.prefix.is_empty() => {
            return Err(format!("'{text}' has a path, which nobody would ask for"));
        }
        Address::Url(_) => return Ok(address),
    };
    Ok(match tls {
        true => Address::Url(Url {
            tls,
            host,
            port,
            prefix: String::new(),
        }),
        false => Address::Tcp { host, port },
    })
}

/// Is this field of the client's for nobody but us, or put anew?
pub(super) fn hidden(name: &[u8]) -> bool {
    // Length first: most names are told apart without comparing bytes.
    matches!(name.len(), 15 | 21 | 27)
        && HIDDEN
            .iter()
            .chain([&FORWARDED_FOR])
            .any(|ours| name.eq_ignore_ascii_case(ours.as_bytes()))
}

/// `X-Forwarded-For` with the client appended.
pub(super) fn put_forwarded(out: &mut Vec<u8>, request: &Request) {
    let head = request.head_bytes();
    let fields = request.head.fields.iter();
    let before = fields.filter(|f| f.name(head).eq_ignore_ascii_case(FORWARDED_FOR.as_bytes()));
    let mut values: Vec<Vec<u8>> = before.map(|f| f.value(head).to_vec()).collect();
    if let Some(peer) = request.peer {
        values.push(peer.to_canonical().to_string().into_bytes());
    }
    if !values.is_empty() {
        put_field(out, FORWARDED_FOR.as_bytes(), &values.join(&b", "[..]));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_that_is_hidden_is_found_by_its_length() {
        for name in HIDDEN.iter().chain([&FORWARDED_FOR]) {
            assert!(hidden(name.to_uppercase().as_bytes()), "{name}");
        }
        assert!(!hidden(b"x-request-id") && !hidden(DATA_PARALLEL.as_bytes()));
    }

    #[test]
    fn places_are_read_with_and_without_a_scheme() {
        let plain = Address::tcp("10.0.0.1", 8000);
        assert_eq!(place("10.0.0.1:8000", false), Ok(plain.clone()));
        assert_eq!(place("http://10.0.0.1:8000/", false), Ok(plain));
        for secure in ["https://p:1", "p:1"] {
            assert!(place(secure, true).unwrap().tls(), "{secure}");
        }
        for bad in ["", "10.0.0.1", "unix:/x", "http://p:1/x", "p:0", "a b:1"] {
            assert!(place(bad, false).is_err(), "{bad}");
        }
    }
}
