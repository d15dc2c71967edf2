//! Routes: a rule's requests shared out among its pools and whatever else it names, as its HTTPRoute says.
//!
//! Envoy Gateway makes one cluster of all backends of a rule (`…/rule/0`), or, where one of them is missing or unlike the others, one of
//! each (`…/rule/0/backend/1`), and then leaves the pools out of the rule's weighted clusters. Neither says anything of pools' weights.

use std::collections::BTreeMap;
use std::time::Duration;

use pool::PoolId;
use protobuf::{Malformed, Message, Writer};

use crate::filter;
use crate::known::{Backend, Known, RouteName};
use crate::stamp::{self, StampedPool};
use crate::xds::{self, Write as _, route};

/// Bodies up to this can be sent to another endpoint, and are shown to the picker.
const REPLAY_BYTES_MAX: u64 = 1 << 20;
/// Endpoints that are tried after the first, each the next of the picker's list.
const RETRIES: u64 = 2;

/// A pool's cluster that a rule sends to, and the one of Envoy Gateway's that it is made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Needed {
    pub(crate) name: String,
    pub(crate) template: String,
    /// The rule names nothing else that could be behind the template: without the pool nobody asks for it.
    pub(crate) is_alone: bool,
    /// The pool gets no requests now.
    pub(crate) is_idle: bool,
    pub(crate) pool: StampedPool,
}

/// What became of a route.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Edited {
    pub(crate) needed: Vec<Needed>,
    /// The HTTPRoute, where what is known of it is not what Envoy Gateway saw.
    pub(crate) behind: Option<RouteName>,
    /// What Envoy Gateway saw is how the HTTPRoute was before.
    pub(crate) ahead: bool,
    /// Pools share its requests with what else the rule names, of which Envoy Gateway does not tell whether there is any.
    pub(crate) is_shared: bool,
}

/// One pool's part of a rule.
struct Share {
    /// Its place among the rule's backends, by which Envoy Gateway calls its cluster where it makes one of each.
    index: usize,
    pool: StampedPool,
    weight: u32,
}

/// Puts the pools that were stamped into a route; none where nothing was.
///
/// # Errors
/// When the route cannot be read; it is then as it was.
pub(crate) fn edit(route: &mut Message, known: &Known) -> Result<Option<Edited>, Malformed> {
    let Some(stamped) = stamp::find(route)? else { return Ok(None) };
    stamp::take_out(route)?;
    let named = route.text(route::NAME);
    let Some((name, rule, prefix)) = rule_of(&named) else { return Ok(Some(Edited::default())) };
    // Envoy Gateway answers such a route itself.
    if stamped.is_empty() || !route.has(route::ACTION) {
        return Ok(Some(Edited::default()));
    }
    let backends = |routes: &BTreeMap<RouteName, Vec<Vec<Backend>>>| {
        let backends = routes.get(&name).and_then(|rules| rules.get(rule));
        shares(&stamped, backends.map(Vec::as_slice))
    };
    let now = backends(&known.routes);
    let former = (!now.2).then(|| backends(&known.former)).filter(|(.., in_step)| *in_step);
    let ahead = former.is_some();
    let (shares, others, in_step) = former.unwrap_or(now);
    // While a rule names a Service, requests may still come for the cluster that it shares, also when its weight is 0 now.
    let (is_alone, others) = (others.is_none(), others.unwrap_or_default());
    let mut action = route.message(route::ACTION)?;
    let mut needed = Vec::new();
    let cluster = action.text(route::CLUSTER);
    let is_shared = !cluster.is_empty() && others > 0;
    if let [Share { pool, .. }] = &shares[..]
        && !cluster.is_empty()
        && others == 0
    {
        let config = filter::for_pool(pool, known.picker_of(pool));
        route.set_map_value(route::TYPED_PER_FILTER_CONFIG, filter::NAME, Some(&config))?;
        let name = cluster_of(prefix, pool);
        action.set(route::CLUSTER, |it| it.bytes(route::CLUSTER, &name));
        needed.push(Needed { name, template: cluster, is_alone, is_idle: false, pool: pool.clone() });
    } else if !cluster.is_empty() || action.has(route::WEIGHTED_CLUSTERS) {
        let mut weighted = action.message(route::WEIGHTED_CLUSTERS)?;
        if is_shared {
            weighted.push(|it| entry(it, &cluster, others, None));
        }
        for Share { index, pool, weight } in &shares {
            let name = cluster_of(prefix, pool);
            let config = filter::for_pool(pool, known.picker_of(pool));
            weighted.push(|it| entry(it, &name, *weight, Some(&config)));
            let is_alone = cluster.is_empty() || is_alone;
            let template =
                if cluster.is_empty() { format!("{prefix}/backend/{index}") } else { cluster.clone() };
            needed.push(Needed { name, template, is_alone, is_idle: false, pool: pool.clone() });
        }
        action.remove(route::CLUSTER);
        action.set(route::WEIGHTED_CLUSTERS, |it| it.bytes(route::WEIGHTED_CLUSTERS, weighted.to_bytes()));
    }
    if !action.has(route::RETRY_POLICY) {
        action.push(retry_policy);
    }
    // Envoy's own default, 15 s, would cut a generation off; Envoy Gateway writes what anybody asked for.
    if !action.has(route::TIMEOUT) {
        action.push(|it| it.duration(route::TIMEOUT, Duration::ZERO));
    }
    route.set(route::ACTION, |it| it.bytes(route::ACTION, action.to_bytes()));
    if !route.has(route::REQUEST_BODY_BUFFER_LIMIT) && !route.has(route::PER_REQUEST_BUFFER_LIMIT_BYTES) {
        route.push(|it| it.wrapped(route::REQUEST_BODY_BUFFER_LIMIT, REPLAY_BYTES_MAX));
    }
    Ok(Some(Edited { needed, behind: (!in_step).then_some(name), ahead, is_shared }))
}

/// The clusters of a rule's pools that get no requests, since their weight is 0, the rule named them a moment ago, or Envoy Gateway knows more
/// or less than we do, made of the one that another of its pools, or what else it names, has: Envoy has filled
/// them when a weight rises, and requests that are on their way when it falls end there. Of pools of other namespaces it is not known here
/// whether the rule may use them.
///
/// # Errors
/// When the route, as Envoy Gateway wrote it, cannot be read.
pub(crate) fn idle(route: &Message, known: &Known, needed: &[Needed]) -> Result<Vec<Needed>, Malformed> {
    let named = route.text(route::NAME);
    let Some((name, rule, prefix)) = rule_of(&named) else { return Ok(Vec::new()) };
    let routes = [&known.routes, &known.former].into_iter();
    let backends = routes.filter_map(|routes| routes.get(&name)?.get(rule)).flatten();
    let pools = backends.filter_map(|backend| {
        let pool = &known.pools.get(backend.pool.as_ref()?)?.pool;
        (pool.namespace == name.namespace).then_some((pool.id(), pool))
    });
    let mut pools: BTreeMap<PoolId, &StampedPool> = pools.collect();
    pools.retain(|id, _| needed.iter().all(|needed| needed.pool.id() != *id));
    if pools.is_empty() || !route.has(route::ACTION) {
        return Ok(Vec::new());
    }
    let action = route.message(route::ACTION)?;
    let template = match needed {
        [first, ..] => first.template.clone(),
        [] if action.has(route::CLUSTER) => action.text(route::CLUSTER),
        [] => action.message(route::WEIGHTED_CLUSTERS)?.message(route::CLUSTERS)?.text(route::ENTRY_NAME),
    };
    let idle = pools.into_values().map(|pool| Needed {
        name: cluster_of(prefix, pool),
        template: template.clone(),
        is_alone: false,
        is_idle: true,
        pool: pool.clone(),
    });
    Ok(idle.collect())
}

/// The name of a pool's cluster in a rule. By its pool and by nothing that changes: requests never move to a cluster of another name, which
/// Envoy would have to fill first, because a weight changes or a backend comes.
fn cluster_of(prefix: &str, pool: &StampedPool) -> String {
    format!("{prefix}/pool/{}", pool.id())
}

/// Leaves in a route what Envoy Gateway found for it; an answer of the hook.
///
/// # Errors
/// When the route cannot be read.
pub(crate) fn stamped(route: &bytes::Bytes, pools: &[StampedPool]) -> Result<Vec<u8>, Malformed> {
    let mut route = Message::parse(route)?;
    stamp::leave(&mut route, pools)?;
    Ok(route.to_bytes())
}

/// `httproute/<namespace>/<name>/rule/<i>/…`: whose route it is, which of its rules, and the name up to there.
fn rule_of(name: &str) -> Option<(RouteName, usize, &str)> {
    let mut parts = name.splitn(6, '/');
    let ("httproute", namespace, route, "rule", rule) =
        (parts.next()?, parts.next()?, parts.next()?, parts.next()?, parts.next()?)
    else {
        return None;
    };
    let prefix = match parts.next() {
        Some(rest) => &name[..name.len() - rest.len() - 1],
        None => name,
    };
    Some((RouteName { namespace: namespace.to_owned(), name: route.to_owned() }, rule.parse().ok()?, prefix))
}

/// Each pool's share, what all others have together where there are any, and whether what is known fits what Envoy Gateway found. Where it does not,
/// the pools that were found share evenly.
fn shares(stamped: &[StampedPool], backends: Option<&[Backend]>) -> (Vec<Share>, Option<u32>, bool) {
    let mut shares: Vec<Share> = Vec::new();
    let mut others = None;
    for (index, backend) in backends.unwrap_or_default().iter().enumerate() {
        let Some(id) = &backend.pool else {
            others = Some(others.unwrap_or(0_u32).saturating_add(backend.weight));
            continue;
        };
        // One that is not stamped is missing, or not to be used from there.
        if let Some(pool) = stamped.iter().find(|pool| pool.id() == *id && backend.weight > 0) {
            shares.push(Share { index, pool: pool.clone(), weight: backend.weight });
        }
    }
    let in_step = stamped.iter().all(|pool| shares.iter().any(|share| share.pool.id() == pool.id()));
    if in_step {
        return (shares, others, true);
    }
    let evenly = stamped.iter().enumerate();
    (evenly.map(|(index, pool)| Share { index, pool: pool.clone(), weight: 1 }).collect(), None, false)
}

/// A weighted cluster, with how the filter is for it.
fn entry(it: &mut Writer, name: &str, weight: u32, filter: Option<&[u8]>) {
    it.message(route::CLUSTERS, |entry| {
        entry.bytes(route::ENTRY_NAME, name);
        entry.wrapped(route::ENTRY_WEIGHT, weight.into());
        if let Some(config) = filter {
            entry.map_entry(route::ENTRY_TYPED_PER_FILTER_CONFIG, filter::NAME, config);
        }
    });
}

/// Each retry takes the next endpoint of the picker's list.
fn retry_policy(it: &mut Writer) {
    const RETRY_ON: u32 = 1;
    const NUM_RETRIES: u32 = 2;
    const RETRY_HOST_PREDICATE: u32 = 5;
    const HOST_SELECTION_RETRY_MAX_ATTEMPTS: u32 = 6;
    const RETRIABLE_STATUS_CODES: u32 = 7;
    const TYPED_CONFIG: u32 = 3;
    it.message(route::RETRY_POLICY, |policy| {
        policy.bytes(RETRY_ON, "connect-failure,refused-stream,reset,retriable-status-codes");
        policy.wrapped(NUM_RETRIES, RETRIES);
        xds::previous_hosts(policy, RETRY_HOST_PREDICATE, TYPED_CONFIG);
        policy.varint(HOST_SELECTION_RETRY_MAX_ATTEMPTS, 5);
        policy.varint(RETRIABLE_STATUS_CODES, 503);
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_routes_name_says_whose_rule_it_is() {
        let (route, rule, prefix) =
            rule_of("httproute/ns/my.route/rule/12/match/0/www_example_com/x").unwrap();
        assert_eq!(
            (route.to_string().as_str(), rule, prefix),
            ("ns/my.route", 12, "httproute/ns/my.route/rule/12")
        );
        for other in
            ["grpcroute/a/b/rule/0/match/0/x", "httproute/a/b/rule", "httproute/a/b/rule/x/match", ""]
        {
            assert_eq!(rule_of(other), None, "{other}");
        }
    }
}
