"""Manifest files: folders, slices, and changes while it runs (cli.md)."""

import json
import os
import re
import shutil

import pytest

from harness.manifests import (
    LABELS,
    STRATEGY,
    ManifestFile,
    PoolFile,
    pool_v1,
    pool_v1alpha2,
    slice_of,
)
from harness.pointsman import Pointsman, run
from harness.traffic import Traffic, burst
from harness.upstream import Upstream, counts, forget
from harness.wait import IN_FORCE_S, holds, until


def ready_endpoints(pointsman: Pointsman) -> float:
    return pointsman.metrics().value("inference_pool_ready_pods")


def reload_failures(pointsman: Pointsman) -> float:
    return pointsman.metrics().value("pointsman_manifest_reload_failures_total")


def becomes(pointsman: Pointsman, endpoints: int) -> None:
    until(lambda: ready_endpoints(pointsman) == endpoints, within=IN_FORCE_S, what=f"there are {endpoints} endpoints")


def used(pointsman: Pointsman, servers: list[Upstream]) -> list[bool]:
    """Which of the servers get requests now."""
    forget(servers)
    for _ in range(10 * len(servers)):
        assert pointsman.complete().status_code == 200
    return [count > 0 for count in counts(servers)]


# ---- folders


def test_a_folder_is_read_for_yaml_yml_and_json_and_not_below_it(start, upstreams, tmp_path):
    by_yaml, by_yml, by_json, below, dotted, other = servers = upstreams(6)
    folder = tmp_path / "manifests"
    (folder / "sub.yaml").mkdir(parents=True)
    ManifestFile(folder / "a.yaml").write(pool_v1(), slice_of(by_yaml))
    ManifestFile(folder / "b.yml").write(slice_of(by_yml))
    ManifestFile(folder / "c.json").write_text(json.dumps(slice_of(by_json)))
    ManifestFile(folder / "sub.yaml" / "d.yaml").write(slice_of(below))
    ManifestFile(folder / ".e.yaml").write(slice_of(dotted))
    ManifestFile(folder / "f.txt").write(slice_of(other))
    (folder / "g.yaml~").write_text("broken: [")
    pointsman = start("-f", folder)
    assert ready_endpoints(pointsman) == 3
    assert used(pointsman, servers) == [True, True, True, False, False, False]


def test_files_come_and_go_in_a_folder(start, upstreams, tmp_path):
    servers = upstreams(3)
    folder = tmp_path / "manifests"
    folder.mkdir()
    ManifestFile(folder / "pool.yaml").write(pool_v1())
    ManifestFile(folder / "0.yaml").write(slice_of(servers[0]))
    pointsman = start("-f", folder)
    assert used(pointsman, servers) == [True, False, False]
    ManifestFile(folder / "1.yaml").write(slice_of(servers[1]))
    ManifestFile(folder / "2.yaml").write(slice_of(servers[2]))
    becomes(pointsman, 3)
    assert used(pointsman, servers) == [True, True, True]
    (folder / "0.yaml").unlink()
    becomes(pointsman, 2)
    assert used(pointsman, servers) == [False, True, True]


def test_a_folder_may_be_swapped_by_a_link_as_mounted_config_maps_are(start, upstreams, tmp_path):
    servers = upstreams(2)
    for number, server in enumerate(servers):
        version = tmp_path / f"version-{number}"
        version.mkdir()
        ManifestFile(version / "all.yaml").write(pool_v1(), slice_of(server))
    link = tmp_path / "current"
    link.symlink_to(tmp_path / "version-0")
    pointsman = start("-f", link)
    assert used(pointsman, servers) == [True, False]
    new = tmp_path / "next"
    new.symlink_to(tmp_path / "version-1")
    os.replace(new, link)
    until(lambda: used(pointsman, servers) == [False, True], within=IN_FORCE_S, what="the new version is in force")


def test_an_empty_folder_has_no_pool(tmp_path):
    outcome = run("up", "-f", tmp_path, "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0")
    assert outcome.returncode == 2 and "InferencePool" in outcome.stderr


def test_kinds_without_meaning_here_are_passed_over_with_one_log_line(start, upstreams, tmp_path):
    file = ManifestFile(tmp_path / "all.yaml")
    service = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web"}, "spec": {"ports": [{"port": 80}]}}
    config = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "settings"}, "data": {"a": "b"}}
    route = {"apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute", "metadata": {"name": "route"}}
    documents = [service, config, route, pool_v1(), slice_of(*upstreams(1))]
    file.write(*documents)
    pointsman = start("-f", file.path)
    assert pointsman.complete().status_code == 200
    for kind in ("Service", "ConfigMap", "HTTPRoute"):
        assert len(pointsman.log_lines(kind)) == 1, pointsman.log()


def test_models_objectives_and_rewrites_are_read(start, upstreams, tmp_path):
    group = "inference.networking.x-k8s.io/v1alpha2"
    ref = {"name": "pool", "group": "inference.networking.k8s.io", "kind": "InferencePool"}
    file = ManifestFile(tmp_path / "all.yaml")
    file.write(
        pool_v1(),
        slice_of(*upstreams(1)),
        {
            "apiVersion": group,
            "kind": "InferenceModel",
            "metadata": {"name": "m"},
            "spec": {"modelName": "tiny", "criticality": "Critical", "poolRef": {"name": "pool"}},
        },
        {
            "apiVersion": group,
            "kind": "InferenceObjective",
            "metadata": {"name": "o"},
            "spec": {"priority": 7, "poolRef": ref},
        },
        {
            "apiVersion": group,
            "kind": "InferenceModelRewrite",
            "metadata": {"name": "r"},
            "spec": {
                "poolRef": ref,
                "rules": [
                    {
                        "matches": [{"model": {"type": "Exact", "value": "other"}}],
                        "targets": [{"modelRewrite": "tiny", "weight": 1}],
                    }
                ],
            },
        },
    )
    pointsman = start("-f", file.path)
    assert not pointsman.log_lines("WARN"), pointsman.log()
    assert pointsman.complete().status_code == 200


# ---- EndpointSlices


def test_a_slice_belongs_to_a_pool_whose_selector_and_namespace_match(start, upstreams, tmp_path):
    ours, more_labels, fewer_labels, other_labels, elsewhere = servers = upstreams(5)
    file = ManifestFile(tmp_path / "all.yaml")
    selector = {"app": "model-server", "tier": "gold"}
    file.write(
        pool_v1(selector={"matchLabels": selector}),
        slice_of(ours, labels=selector),
        slice_of(more_labels, labels={**selector, "zone": "a"}),
        slice_of(fewer_labels, labels=LABELS),
        slice_of(other_labels, labels={**selector, "tier": "silver"}),
        slice_of(elsewhere, labels=selector, namespace="elsewhere"),
    )
    pointsman = start("-f", file.path)
    assert used(pointsman, servers) == [True, True, False, False, False]


def test_an_endpoint_that_is_not_ready_is_taken_out(start, upstreams, tmp_path):
    ready, not_ready, unsaid = servers = upstreams(3)
    file = ManifestFile(tmp_path / "all.yaml")
    file.write(pool_v1(), slice_of(ready), slice_of(not_ready, ready=False), slice_of(unsaid, ready=None))
    pointsman = start("-f", file.path)
    assert used(pointsman, servers) == [True, False, True]
    file.write(pool_v1(), slice_of(ready, ready=False), slice_of(not_ready), slice_of(unsaid, ready=None))
    until(lambda: used(pointsman, servers) == [False, True, True], within=IN_FORCE_S, what="readiness is in force")


@pytest.mark.parametrize("version", [pool_v1, pool_v1alpha2])
def test_target_ports_of_the_pool_are_used_when_the_slice_names_none(version, start, upstreams, tmp_path):
    (first,) = upstreams(1, host="127.0.0.2")
    same_port = upstreams(1, host="127.0.0.3", port=first.port)[0]
    file = ManifestFile(tmp_path / "all.yaml")
    slices = [slice_of(server, port=None) for server in (first, same_port)]
    file.write(version(port=first.port), *slices)
    pointsman = start("-f", file.path)
    assert used(pointsman, [first, same_port]) == [True, True]


def test_the_slices_port_beats_the_pools(start, upstreams, tmp_path):
    (server,) = upstreams(1)
    file = ManifestFile(tmp_path / "all.yaml")
    file.write(pool_v1(port=9), slice_of(server))
    assert start("-f", file.path).complete().status_code == 200


def test_each_target_port_is_an_endpoint(start, upstreams, tmp_path):
    ranks = upstreams(3)
    file = ManifestFile(tmp_path / "all.yaml")
    ports = [{"number": rank.port} for rank in ranks]
    file.write(pool_v1(targetPorts=ports), slice_of(ranks[0], port=None))
    pointsman = start("-f", file.path)
    assert ready_endpoints(pointsman) == 3
    assert used(pointsman, ranks) == [True, True, True]


def test_a_slice_may_hold_ipv6_addresses(start, upstreams, tmp_path):
    (server,) = upstreams(1, host="::1")
    file = ManifestFile(tmp_path / "all.yaml")
    file.write(pool_v1(), slice_of(server))
    assert start("-f", file.path).complete().status_code == 200


def test_two_slices_with_the_same_endpoint_count_it_once(start, upstreams, tmp_path):
    (server,) = upstreams(1)
    twin = slice_of(server)
    twin["metadata"]["name"] = "twin"
    file = ManifestFile(tmp_path / "all.yaml")
    file.write(pool_v1(), slice_of(server), twin)
    assert ready_endpoints(start("-f", file.path)) == 1


# ---- changes


def test_a_pool_without_endpoints_is_a_warning_and_503_until_one_appears(start, upstreams, pool_file):
    file = pool_file([])
    pointsman = start("-f", file.path)
    assert pointsman.log_lines("WARN"), pointsman.log()
    answer = pointsman.complete()
    assert answer.status_code == 503
    assert int(answer.headers["retry-after"]) >= 1
    file.upstreams = upstreams(1)
    file.save()
    until(lambda: pointsman.complete().status_code == 200, within=IN_FORCE_S, what="the endpoint is used")
    file.upstreams = []
    file.save()
    until(lambda: pointsman.complete().status_code == 503, within=IN_FORCE_S, what="the last endpoint is gone")


def test_endpoints_come_and_go_under_traffic_and_no_request_fails(start, upstreams, pool_file):
    servers = upstreams(6)
    for server in servers:
        server.answers(first_byte_s=0.02)
    file = pool_file(servers[:2])
    pointsman = start("-f", file.path)
    with Traffic(lambda number: pointsman.complete(stream=number % 2 == 0)) as traffic:
        for begin in (1, 2, 3, 4, 0):
            file.upstreams = servers[begin : begin + 2]
            file.save()
            becomes(pointsman, 2)
            until(lambda: all(s.in_flight for s in file.upstreams), within=IN_FORCE_S, what="the new ones are used")
            traffic.more(40)
        traffic.assert_unharmed()
    assert all(counts(servers))


def test_a_request_in_flight_outlives_its_endpoint(start, upstreams, pool_file):
    leaving, staying = upstreams(2)
    leaving.answers(tokens=12, token_interval_s=0.1)
    file = pool_file([leaving])
    pointsman = start("-f", file.path)
    body = {"model": "tiny", "prompt": "x", "stream": True}
    with pointsman.client.stream("POST", "/v1/completions", json=body) as answer:
        events = answer.iter_lines()
        next(events)
        file.upstreams = [staying]
        file.save()
        until(lambda: staying.scrapes, within=IN_FORCE_S, what="the change is in force")
        assert [line for line in events if line][-1] == "data: [DONE]"
    assert pointsman.complete().status_code == 200
    assert counts([leaving, staying]) == [1, 1]


def test_an_endpoint_that_leaves_leaves_the_others_as_they_are(start, upstreams, pool_file):
    """Several servers on one machine: one address, many ports."""
    servers = upstreams(3)
    file = pool_file(servers)
    pointsman = start("-f", file.path)

    def change() -> None:
        for number in (1, 2):
            file.upstreams = servers[number:]
            file.save()
            becomes(pointsman, 3 - number)
        ledger = "pointsman_endpoint_in_flight_requests"
        in_flight = pointsman.metrics().value(ledger, endpoint=servers[2].address)
        assert in_flight == servers[2].in_flight, "what is in flight there is still known"

    burst(servers, [pointsman.complete] * 9, change)
    removed = [line for line in pointsman.log_lines("removed") if servers[2].address in line]
    assert removed == []


def test_the_target_port_changes_under_traffic_and_no_request_fails(start, upstreams, tmp_path):
    old, new = servers = upstreams(2)
    file = ManifestFile(tmp_path / "all.yaml")
    file.write(pool_v1(port=old.port), slice_of(old, port=None))
    pointsman = start("-f", file.path)
    with Traffic(lambda number: pointsman.complete()) as traffic:
        traffic.more()
        for server in (new, old, new):
            file.write(pool_v1(port=server.port), slice_of(server, port=None))
            forget(servers)
            until(lambda server=server: server.requests, within=IN_FORCE_S, what="the new port is used")
            traffic.more()
        traffic.assert_unharmed()


@pytest.mark.parametrize(
    "broken",
    [
        pytest.param("kind: InferencePool\n  bad: indent\n", id="does not parse"),
        pytest.param("", id="empty"),
        pytest.param(b"\xff\xff", id="no UTF-8"),
        pytest.param("- just\n- a\n- list\n", id="no object"),
    ],
)
def test_a_file_that_breaks_changes_nothing_and_the_log_says_where(broken, start, upstreams, pool_file):
    servers = upstreams(2)
    file = pool_file(servers)
    pointsman = start("-f", file.path)
    with Traffic(lambda number: pointsman.complete(), clients=2) as traffic:
        file.write_text(broken)
        until(lambda: pointsman.log_lines("ERROR"), within=IN_FORCE_S, what="the log says it")
        traffic.more(100)
        traffic.assert_unharmed()
    assert ready_endpoints(pointsman) == 2
    assert len(pointsman.log_lines("ERROR")) == 1, pointsman.log()
    file.upstreams = servers[:1]
    file.save()
    becomes(pointsman, 1)


def test_a_file_that_does_not_parse_is_told_with_line_and_column(start, upstreams, pool_file):
    file = pool_file(upstreams(1))
    pointsman = start("-f", file.path)
    text = file.path.read_text()
    file.write_text(text + "---\nkind: [unclosed\nmore: 1\n")
    (line,) = until(lambda: pointsman.log_lines("ERROR"), within=IN_FORCE_S, what="the log says it")
    place = re.search(r"pool\.yaml:(\d+):(\d+)", line)
    assert place, line
    assert text.count("\n") < int(place.group(1)) <= text.count("\n") + 4, line
    assert reload_failures(pointsman) >= 1


def test_a_half_written_file_changes_nothing(start, upstreams, pool_file):
    servers = upstreams(3)
    file = pool_file(servers)
    pointsman = start("-f", file.path)
    whole = file.path.read_text()
    # An editor that writes in place: cut within the second slice.
    file.path.write_text(whole[: whole.rindex("kind: EndpointSlice")])
    holds(lambda: ready_endpoints(pointsman) >= 1, over=0.5, what="there are endpoints")
    assert pointsman.complete().status_code == 200
    file.path.write_text(whole)
    becomes(pointsman, 3)


def test_a_second_pool_is_told_and_what_ran_keeps_running(start, upstreams, pool_file):
    file = pool_file(upstreams(1))
    pointsman = start("-f", file.path)
    file.write(pool_v1(), pool_v1(name="second"), *map(slice_of, file.upstreams))
    (line,) = until(lambda: pointsman.log_lines("ERROR"), within=IN_FORCE_S, what="the log says it")
    assert "second" in line
    assert pointsman.complete().status_code == 200
    file.annotate({STRATEGY: "PREFIX_CACHE"})
    until(lambda: pointsman.log_lines("PREFIX_CACHE"), within=IN_FORCE_S, what="a sound file is in force again")


def test_a_file_that_vanishes_changes_nothing(start, upstreams, pool_file):
    file = pool_file(upstreams(1))
    pointsman = start("-f", file.path)
    kept = file.path.with_suffix(".kept")
    shutil.move(file.path, kept)
    until(lambda: pointsman.log_lines(file.path.name, "ERROR"), within=3, what="the log says it")
    assert pointsman.complete().status_code == 200
    file.upstreams = upstreams(2)
    file.save()
    becomes(pointsman, 2)


def test_a_folder_that_loses_its_pool_changes_nothing(start, upstreams, tmp_path):
    folder = tmp_path / "manifests"
    folder.mkdir()
    ManifestFile(folder / "pool.yaml").write(pool_v1())
    ManifestFile(folder / "slice.yaml").write(slice_of(*upstreams(1)))
    pointsman = start("-f", folder)
    (folder / "pool.yaml").unlink()
    until(lambda: pointsman.log_lines("ERROR"), within=IN_FORCE_S, what="the log says it")
    assert pointsman.complete().status_code == 200


def test_the_pool_may_change_its_version(start, upstreams, pool_file):
    servers = upstreams(2)
    file = pool_file(servers)
    pointsman = start("-f", file.path)
    with Traffic(lambda number: pointsman.complete()) as traffic:
        traffic.more()
        file.make_pool = pool_v1alpha2
        file.annotate({STRATEGY: "PREFIX_CACHE"})
        until(lambda: pointsman.log_lines("PREFIX_CACHE"), within=IN_FORCE_S, what="the other version is in force")
        traffic.more()
        traffic.assert_unharmed()


def test_many_changes_one_after_the_other_end_with_the_last(start, upstreams, tmp_path):
    servers = upstreams(4)
    file = PoolFile(tmp_path / "pool.yaml", servers[:1])
    pointsman = start("-f", file.path)
    for number in range(60):
        file.upstreams = servers[: 1 + number % 3]
        file.save()
    file.upstreams = servers
    file.save()
    becomes(pointsman, 4)
    holds(lambda: ready_endpoints(pointsman) == 4, over=0.5, what="the last change stays")
