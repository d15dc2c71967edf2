//! PostTranslateModify: all clusters, listeners and routes of one Gateway, once its policies are in them.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use bytes::Bytes;
use protobuf::{Fields, Malformed, Message, Writer};

use crate::known::{Known, PickerOwner, RouteName};
use crate::routes::{self, Needed};
use crate::stamp::StampedPool;
use crate::xds::{cluster, route};
use crate::{filter, pools};

/// What is put into a translation, by number: raised whenever that changes, so that Envoy Gateway is asked to translate again when a
/// newer one of us takes over.
pub const REVISION: u32 = 4;

/// The resources of a translation, each as Envoy Gateway wrote it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Translation {
    /// `envoy.config.cluster.v3.Cluster`
    pub clusters: Vec<Bytes>,
    /// `envoy.extensions.transport_sockets.tls.v3.Secret`; none where Envoy Gateway is told to keep them to itself.
    pub secrets: Vec<Bytes>,
    /// `envoy.config.listener.v3.Listener`
    pub listeners: Vec<Bytes>,
    /// `envoy.config.route.v3.RouteConfiguration`
    pub routes: Vec<Bytes>,
}

/// How translations are made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setting {
    /// Where Envoys reach us: a host, by name or address, and a port.
    pub discovery: (String, u16),
    /// Whether a pool may change from our picker to its own and back. Then the clusters of both are there all the time: an Envoy that hears
    /// of a route and of the cluster that it asks at the same time has no answer until that one has its endpoints.
    pub pickers_change: bool,
}

/// Something that could not be put in; all else is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// What it is about.
    pub of: String,
    /// Why.
    pub why: String,
}

/// A translation with pools in it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Translated {
    /// The resources.
    pub translation: Translation,
    /// HTTPRoutes of which less, or other, is known than Envoy Gateway saw.
    pub behind: BTreeSet<RouteName>,
    /// Envoy Gateway saw one as it was a moment ago, and translates again by itself; or saw a newer one that is like that.
    pub ahead: bool,
    /// In some rule pools share the requests with what else it names, of which Envoy Gateway does not tell whether there is any.
    pub shared: bool,
    /// What could not be put in.
    pub faults: Vec<Fault>,
}

impl Translation {
    // PostTranslateModifyRequest; the answer's fields have other numbers.
    const CLUSTERS: [u32; 2] = [2, 1];
    const SECRETS: [u32; 2] = [3, 2];
    const LISTENERS: [u32; 2] = [4, 3];
    const ROUTES: [u32; 2] = [5, 4];

    /// Reads a PostTranslateModifyRequest.
    ///
    /// # Errors
    /// When it is none.
    pub fn read(request: &Bytes) -> Result<Translation, Malformed> {
        let mut translation = Translation::default();
        let mut fields = Fields::of(request);
        while let Some((number, value)) = fields.read()? {
            let kind = match number {
                _ if number == Self::CLUSTERS[0] => &mut translation.clusters,
                _ if number == Self::SECRETS[0] => &mut translation.secrets,
                _ if number == Self::LISTENERS[0] => &mut translation.listeners,
                _ if number == Self::ROUTES[0] => &mut translation.routes,
                _ => continue,
            };
            kind.push(request.slice_ref(value.bytes(number)?));
        }
        Ok(translation)
    }

    /// A PostTranslateModifyResponse.
    #[must_use]
    pub fn write(&self) -> Vec<u8> {
        Writer::of(|response| {
            let kinds = [
                (Self::CLUSTERS[1], &self.clusters),
                (Self::SECRETS[1], &self.secrets),
                (Self::LISTENERS[1], &self.listeners),
                (Self::ROUTES[1], &self.routes),
            ];
            for (field, resources) in kinds {
                resources.iter().for_each(|resource| response.bytes(field, resource));
            }
        })
    }
}

/// Puts pools into a translation: in each rule that names some, clusters of theirs in the shares of its HTTPRoute, the filter that asks
/// their pickers, and the clusters of those.
#[must_use]
pub fn translate(asked: &Translation, known: &Known, setting: &Setting) -> Translated {
    let mut made = Translated::default();
    let mut needed: BTreeMap<String, Needed> = BTreeMap::new();
    let mut configurations = BTreeSet::new();
    for bytes in &asked.routes {
        let edited = edit_configuration(bytes, known, &mut needed, &mut made).unwrap_or_else(|malformed| {
            made.faults.push(Fault::new("a route configuration", &malformed));
            Configuration::default()
        });
        configurations.extend(edited.leads_to_pools);
        made.translation.routes.push(edited.bytes.unwrap_or_else(|| bytes.clone()));
    }
    made.translation.clusters = clusters(asked, &needed, known, setting, &mut made.faults);
    made.translation.listeners = listeners(asked, &configurations, &mut made.faults);
    made.translation.secrets.clone_from(&asked.secrets);
    made
}

/// What became of a route configuration.
#[derive(Default)]
struct Configuration {
    /// Its name, where a rule of it names a pool.
    leads_to_pools: Option<String>,
    /// It with pools in it, where it differs.
    bytes: Option<Bytes>,
}

fn edit_configuration(
    bytes: &Bytes,
    known: &Known,
    needed: &mut BTreeMap<String, Needed>,
    made: &mut Translated,
) -> Result<Configuration, Malformed> {
    let mut configuration = Message::parse(bytes)?;
    let mut leads_to_pools = false;
    let edited = configuration.edit_all::<Malformed>(route::VIRTUAL_HOSTS, |host| {
        host.edit_all(route::ROUTES, |route| {
            let before = route.clone();
            let edited = routes::edit(route, known).and_then(|edited| {
                let needed = edited.as_ref().map_or(&[][..], |edited| &edited.needed);
                let idle = routes::idle(&before, known, needed)?;
                Ok((edited, idle))
            });
            match edited {
                Ok((edited, idle)) => {
                    let differs = edited.is_some();
                    leads_to_pools |= differs || !idle.is_empty();
                    let edited = edited.unwrap_or_default();
                    made.behind.extend(edited.behind);
                    made.ahead |= edited.ahead;
                    made.shared |= edited.is_shared;
                    let all = edited.needed.into_iter().chain(idle);
                    needed.extend(all.map(|needed| (needed.name.clone(), needed)));
                    Ok::<_, Malformed>(differs)
                }
                Err(malformed) => {
                    made.faults
                        .push(Fault::new(&format!("the route {}", before.text(route::NAME)), &malformed));
                    *route = before;
                    Ok(false)
                }
            }
        })
    })?;
    Ok(Configuration {
        leads_to_pools: leads_to_pools.then(|| configuration.text(route::CONFIGURATION_NAME)),
        bytes: edited.then(|| configuration.to_bytes().into()),
    })
}

fn clusters(
    asked: &Translation,
    needed: &BTreeMap<String, Needed>,
    known: &Known,
    setting: &Setting,
    faults: &mut Vec<Fault>,
) -> Vec<Bytes> {
    let mut named: BTreeMap<String, &Bytes> = BTreeMap::new();
    let mut kept = Vec::with_capacity(asked.clusters.len());
    let unused: BTreeSet<&str> =
        needed.values().filter(|it| it.is_alone).map(|it| it.template.as_str()).collect();
    for bytes in &asked.clusters {
        let name = Message::parse(bytes).map(|cluster| cluster.text(cluster::NAME)).unwrap_or_default();
        if !unused.contains(name.as_str()) {
            kept.push(bytes.clone());
        }
        named.insert(name, bytes);
    }
    let mut pickers: BTreeMap<String, StampedPool> = BTreeMap::new();
    for Needed { name, template, pool, is_idle, .. } in needed.values() {
        let template_bytes = named.get(template);
        if *is_idle && !template_bytes.is_some_and(|bytes| is_like_a_pools(bytes)) {
            continue;
        }
        let made = match template_bytes {
            Some(template) => pools::of_pool(template, name, pool, known.picker_of(pool))
                .map_err(|malformed| malformed.to_string()),
            None => Err(format!("Envoy Gateway made no cluster {template} for its rule")),
        };
        match made {
            Ok(cluster) => {
                kept.push(cluster.into());
                pickers.insert(pool.id().to_string(), pool.clone());
            }
            Err(why) => faults.push(Fault { of: format!("the pool {} in {name}", pool.id()), why }),
        }
    }
    for pool in pickers.values() {
        let asked = known.picker_of(pool);
        let owners = [PickerOwner::Ours, PickerOwner::Pool];
        let owners = owners.into_iter().filter(|owner| setting.pickers_change || *owner == asked);
        kept.extend(owners.map(|owner| Bytes::from(pools::of_picker(pool, owner))));
    }
    // Also while no route leads to a pool: if it came with the first one, that one's requests would fail until it is resolved and
    // connected to.
    let (host, port) = &setting.discovery;
    kept.push(pools::discovery((host, *port)).into());
    kept
}

/// Whether a pool's cluster may be made of that one before Envoy Gateway has made one for the pool: TLS is for what a policy names.
fn is_like_a_pools(bytes: &Bytes) -> bool {
    Message::parse(bytes).is_ok_and(|it| !it.has(cluster::TRANSPORT_SOCKET))
}

fn listeners(asked: &Translation, configurations: &BTreeSet<String>, faults: &mut Vec<Fault>) -> Vec<Bytes> {
    let serves = |name: &str| configurations.contains(name);
    let edited = asked.listeners.iter().map(|bytes| {
        let put = |bytes: &Bytes| -> Result<Option<Vec<u8>>, Malformed> {
            let mut listener = Message::parse(bytes)?;
            Ok(filter::put_into(&mut listener, &serves)?.then(|| listener.to_bytes()))
        };
        match put(bytes) {
            Ok(Some(edited)) => edited.into(),
            Ok(None) => bytes.clone(),
            Err(malformed) => {
                faults.push(Fault::new("a listener", &malformed));
                bytes.clone()
            }
        }
    });
    edited.collect()
}

impl Fault {
    fn new(of: &str, malformed: &Malformed) -> Fault {
        Fault { of: of.to_owned(), why: malformed.to_string() }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.of, self.why)
    }
}
