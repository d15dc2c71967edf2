//! What a translation takes, by its number of routes to pools; beside it what it takes where none leads to a pool, which is reading alone.
//!
//! `cargo bench -p envoy-gateway`
//!
//! `stamp` is the other hook, which Envoy Gateway calls once a route before.

use std::sync::Arc;

use bytes::Bytes;
use envoy_gateway::{Backend, ExtensionServer, Known, RouteName, Setting, Translation, translate};
use futures_util::FutureExt as _;
use pool::PoolId;
use protobuf::{Malformed, Message};

const SIZES: [usize; 3] = [10, 100, 1000];

fn main() {
    divan::main();
}

/// The rule `sole` of the capture, so many times: routes, clusters, and what is known of them.
fn many(routes: usize, to_pools: bool) -> (Translation, Known) {
    const VIRTUAL_HOSTS: u32 = 2;
    const ROUTES: u32 = 3;
    const ROUTE_NAME: u32 = 14;
    const NAME: u32 = 1;
    const ACTION: u32 = 2;
    const CLUSTER: u32 = 1;
    let bytes = Bytes::from_static(include_bytes!("../tests/captures/translation.bin"));
    let mut asked = Translation::read(&bytes).expect("a capture");
    let of = if to_pools { "/sole/" } else { "/plain/" };
    let renamed = |name: &str, number: usize| name.replace(of, &format!("/route-{number}/"));
    let mut configuration = Message::parse(&asked.routes[0]).expect("a capture");
    configuration
        .edit_all::<Malformed>(VIRTUAL_HOSTS, |host| {
            let all: Vec<Bytes> = host.all(ROUTES).collect();
            let like =
                |bytes: &&Bytes| Message::parse(bytes).is_ok_and(|route| route.text(ROUTE_NAME).contains(of));
            let Some(one) = all.iter().find(like) else { return Ok(false) };
            let one = Message::parse(one)?;
            host.remove(ROUTES);
            for number in 0..routes {
                let mut route = one.clone();
                let name = renamed(&route.text(ROUTE_NAME), number);
                route.set(ROUTE_NAME, |it| it.bytes(ROUTE_NAME, name));
                route.edit::<Malformed>(ACTION, |action| {
                    let cluster = renamed(&action.text(CLUSTER), number);
                    action.set(CLUSTER, |it| it.bytes(CLUSTER, cluster));
                    Ok(())
                })?;
                host.push(|it| it.bytes(ROUTES, route.to_bytes()));
            }
            Ok(true)
        })
        .expect("a capture");
    asked.routes = vec![configuration.to_bytes().into()];
    let cluster = asked.clusters.iter().map(|bytes| Message::parse(bytes).expect("a capture"));
    let cluster = cluster.clone().find(|cluster| cluster.text(NAME).contains(of)).expect("a capture");
    let clusters = (0..routes).map(|number| {
        let mut cluster = cluster.clone();
        let name = renamed(&cluster.text(NAME), number);
        cluster.set(NAME, |it| it.bytes(NAME, name));
        Bytes::from(cluster.to_bytes())
    });
    asked.clusters = clusters.collect();
    let pool = Backend { pool: Some(PoolId::new("default", "qwen-pool")), weight: 1 };
    let known = (0..routes).map(|number| {
        let route = RouteName { namespace: "default".into(), name: format!("route-{number}") };
        (route, vec![vec![pool.clone()]])
    });
    (asked, Known { routes: known.collect(), ..Known::default() })
}

fn run(bencher: divan::Bencher<'_, '_>, routes: usize, to_pools: bool) {
    let (asked, known) = many(routes, to_pools);
    let setting = Setting {
        discovery: ("pointsman-controller.pointsman-system.svc".into(), 5005),
        pickers_change: true,
    };
    let made = translate(&asked, &known, &setting);
    assert_eq!((made.behind.len(), made.faults.len()), (0, 0));
    bencher.bench_local(|| translate(&asked, &known, &setting).translation.write());
}

#[divan::bench(args = SIZES)]
fn to_pools(bencher: divan::Bencher<'_, '_>, routes: usize) {
    run(bencher, routes, true);
}

#[divan::bench]
fn stamp(bencher: divan::Bencher<'_, '_>) {
    let request = Bytes::from_static(include_bytes!("../tests/captures/route-000.bin"));
    let setting = Setting {
        discovery: ("pointsman-controller.pointsman-system.svc".into(), 5005),
        pickers_change: true,
    };
    let (_known, known) = tokio::sync::watch::channel(Arc::default());
    let (_endpoints, endpoints) = tokio::sync::watch::channel(Arc::default());
    let server = ExtensionServer::new(setting, known, endpoints);
    bencher.bench_local(|| {
        let answer = server.answer("PostRouteModify", &request).now_or_never();
        assert!(matches!(&answer, Some(Ok(Some(route))) if !route.is_empty()));
        answer
    });
}

#[divan::bench(args = SIZES)]
fn to_services(bencher: divan::Bencher<'_, '_>, routes: usize) {
    run(bencher, routes, false);
}
