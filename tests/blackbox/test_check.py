"""`pointsman check`: offline, what would be in force, and every fault on a line (cli.md)."""

import re
import textwrap

import pytest

from harness.manifests import (
    BLOCK_SIZE,
    LRU_CAPACITY,
    MAX_BLOCKS,
    OVERLAY,
    QUEUE_CAPACITY,
    QUEUE_TTL,
    QUEUEING,
    RUNTIME,
    STRATEGY,
    ManifestFile,
    pool_v1,
    pool_v1alpha2,
)
from harness.pointsman import run

DEFAULTS = {
    STRATEGY: "DEFAULT",
    BLOCK_SIZE: "64",
    MAX_BLOCKS: "128",
    LRU_CAPACITY: "50000",
    QUEUEING: "disabled",
    QUEUE_CAPACITY: "104857600",
    QUEUE_TTL: "30s",
    RUNTIME: "vllm",
}

FAULT = re.compile(r"(?P<file>[^\s:]+):(?P<line>\d+):(?P<column>\d+): (?P<key>\S+): (?P<what>.+); expected (?P<expected>.+); using (?P<using>.+)")


@pytest.fixture
def check(tmp_path):
    """Writes a file, checks it; (exit code, lines of settings, faults)."""

    def check(*documents, text=None, name="m.yaml"):
        file = ManifestFile(tmp_path / name)
        if text is None:
            file.write(*documents)
        else:
            file.write_text(textwrap.dedent(text))
        outcome = run("check", "-f", file.path)
        assert outcome.stderr == "" or outcome.returncode == 2, outcome.stderr
        lines = outcome.stdout.splitlines()
        faults = [match for line in lines if (match := FAULT.fullmatch(line))]
        settings = [line for line in lines if not FAULT.fullmatch(line)]
        assert not [line for line in settings if name in line and "; expected" in line], "every fault has the form"
        return outcome.returncode, settings, faults

    return check


def setting(lines: list[str], key: str) -> str:
    """The line that shows a setting."""
    (line,) = [line for line in lines if key in line]
    return line


@pytest.mark.parametrize("version", [pool_v1, pool_v1alpha2])
def test_a_pool_without_annotations_is_sound_and_all_defaults_are_shown(version, check):
    code, settings, faults = check(version())
    assert (code, faults) == (0, [])
    for key, value in DEFAULTS.items():
        line = setting(settings, key)
        assert re.search(rf"= {value}\b.*default", line), line
    assert "default" in setting(settings, OVERLAY)


VALID = {
    STRATEGY: "PREFIX_CACHE",
    BLOCK_SIZE: "32",
    MAX_BLOCKS: "7",
    LRU_CAPACITY: "99",
    QUEUEING: "enabled",
    QUEUE_CAPACITY: "1024",
    QUEUE_TTL: "2h45m",
    RUNTIME: "sglang",
    OVERLAY: "custom-epp",
}


@pytest.mark.parametrize("version", [pool_v1, pool_v1alpha2])
def test_each_setting_is_shown_with_the_annotation_it_comes_from(version, check):
    overlay = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "custom-epp"}, "data": {}}
    code, settings, faults = check(version(VALID), overlay)
    assert (code, faults) == (0, [])
    for key, value in VALID.items():
        line = setting(settings, key)
        assert re.search(rf"= {value}\b.*annotation", line) and "(default" not in line, line


@pytest.mark.parametrize(
    "key, value",
    [
        (BLOCK_SIZE, "1"),
        (BLOCK_SIZE, "65536"),
        (BLOCK_SIZE, "+64"),
        (BLOCK_SIZE, "  64\n"),
        (MAX_BLOCKS, "65536"),
        (LRU_CAPACITY, "10000000"),
        (QUEUE_CAPACITY, "1099511627776"),
        (BLOCK_SIZE, "0064"),
        (STRATEGY, "\tPREFIX_CACHE "),
        (RUNTIME, "trt-llm"),
    ],
)
def test_values_at_the_edge_are_valid(key, value, check):
    code, _, faults = check(pool_v1({key: value}))
    assert (code, faults) == (0, [])


BAD = [
    (BLOCK_SIZE, ["0", "-1", "65537", "6 4", "1.0", "1e3", "0x10", "٣", "", " ", "99999999999999999999", "--1", "++1", "+"]),
    (MAX_BLOCKS, ["0", "65537", "null", "true"]),
    (LRU_CAPACITY, ["0", "10000001"]),
    (QUEUE_CAPACITY, ["0", "1099511627777", "100Mi"]),
    (STRATEGY, ["default", "PREFIX-CACHE", ""]),
    (QUEUEING, ["yes", "ENABLED", ""]),
    (RUNTIME, ["VLLM", "trtllm", ""]),
    (OVERLAY, ["", "not/a/name", "UPPER"]),
]


@pytest.mark.parametrize("key, value", [(key, value) for key, values in BAD for value in values])
def test_a_bad_value_is_one_fault_and_exit_1(key, value, check):
    code, settings, faults = check(pool_v1({key: value}))
    assert code == 1
    assert [fault["key"] for fault in faults] == [key]
    if key in DEFAULTS:
        assert DEFAULTS[key] in faults[0]["using"]
        assert f"= {DEFAULTS[key]}" in setting(settings, key)


# What Go's time.ParseDuration takes and is above 0, and what it does not take or is not.
DURATIONS = ["1ns", "1us", "1µs", "1μs", "1ms", "300ms", "1.5h", "2h45m", "+5s", ".5s", "5.s", "0h1s", "1h1h", "2562047h47m16.854775807s", "0.0000001s", "1m0.5s"]
NO_DURATIONS = ["5", "1d", "1h-2m", "0s", "0", "-1s", "", ".s", "s", "1 s", "1S", "1h 2m", "1e3s", "2562048h", "9223372036854775808ns", "0.1ns", "1,5s", "∞", "+", "1s1"]


@pytest.mark.parametrize("value", DURATIONS)
def test_durations_are_those_of_go(value, check):
    code, _, faults = check(pool_v1({QUEUE_TTL: value}))
    assert (code, faults) == (0, [])


@pytest.mark.parametrize("value", NO_DURATIONS)
def test_what_go_does_not_take_or_is_not_above_zero_is_no_duration(value, check):
    code, _, faults = check(pool_v1({QUEUE_TTL: value}))
    assert code == 1
    assert [fault["key"] for fault in faults] == [QUEUE_TTL]


def test_a_fault_has_file_line_and_column_of_the_value(check, tmp_path):
    code, _, (fault,) = check(
        text=f"""\
        apiVersion: inference.networking.k8s.io/v1
        kind: InferencePool
        metadata:
          name: pool
          annotations:
            # a comment
            {QUEUEING}:   maybe
        spec:
          selector: {{matchLabels: {{app: a}}}}
          targetPorts: [{{number: 1}}]
        """
    )
    assert code == 1
    assert fault["file"].endswith("m.yaml")
    assert int(fault["line"]) == 7
    assert int(fault["column"]) == 4 + len(QUEUEING) + 1 + 3 + 1
    assert "maybe" in fault["what"]
    assert "enabled" in fault["expected"] and "disabled" in fault["expected"]
    assert "disabled" in fault["using"]


def test_lines_count_through_all_documents_of_a_file(check):
    _, _, (fault,) = check(
        text=f"""\
        apiVersion: v1
        kind: Service
        metadata: {{name: web}}
        ---
        apiVersion: inference.networking.x-k8s.io/v1alpha2
        kind: InferencePool
        metadata: {{name: pool, annotations: {{"{BLOCK_SIZE}": many}}}}
        spec: {{selector: {{app: a}}, targetPortNumber: 1}}
        """
    )
    assert int(fault["line"]) == 7


def test_json_is_read_too(check):
    code, settings, faults = check(
        text=f"""\
        {{"apiVersion": "inference.networking.k8s.io/v1", "kind": "InferencePool",
          "metadata": {{"name": "pool", "annotations": {{"{BLOCK_SIZE}": "32", "{QUEUEING}": "x"}}}},
          "spec": {{"selector": {{"matchLabels": {{"app": "a"}}}}, "targetPorts": [{{"number": 8000}}]}}}}
        """,
        name="m.json",
    )
    assert code == 1
    assert "= 32" in setting(settings, BLOCK_SIZE)
    assert [(fault["key"], fault["line"]) for fault in faults] == [(QUEUEING, "2")]


@pytest.mark.parametrize(
    "unknown, nearest",
    [
        (STRATEGY.replace("strategy", "stratgy"), STRATEGY),
        (LRU_CAPACITY.replace("lru-", ""), LRU_CAPACITY),
        (QUEUE_TTL.replace("ttl", "timeout"), QUEUE_TTL),
        # The right name under the wrong one of our two prefixes.
        (QUEUE_TTL.replace("inference-epp-env", "inference"), QUEUE_TTL),
    ],
)
def test_an_unknown_key_is_a_fault_and_names_the_nearest_known(unknown, nearest, check):
    code, _, faults = check(pool_v1({unknown: "1"}))
    assert code == 1
    assert [fault["key"] for fault in faults] == [unknown]
    assert nearest in faults[0]["expected"]


def test_other_peoples_annotations_are_no_fault(check):
    code, _, faults = check(pool_v1({"example.com/x": "", "kubectl.kubernetes.io/last-applied-configuration": "{}"}))
    assert (code, faults) == (0, [])


def test_all_faults_are_told_at_once_in_the_order_of_the_file(check):
    bad = {STRATEGY: "x", BLOCK_SIZE: "x", QUEUE_TTL: "x"}
    code, _, faults = check(pool_v1(bad, name="one"), pool_v1alpha2(bad, name="two"))
    assert code == 1
    lines = [int(fault["line"]) for fault in faults]
    assert len(lines) == 6 and lines == sorted(lines)


def test_yaml_that_does_not_parse_is_a_fault_with_its_position(check):
    code, _, faults = check(text="kind: InferencePool\nmetadata: {name: [a\n")
    assert code == 1
    assert len(faults) == 1
    assert 2 <= int(faults[0]["line"]) <= 3


def test_two_pools_are_sound(check):
    code, settings, faults = check(pool_v1(name="one"), pool_v1alpha2(name="two"))
    assert (code, faults) == (0, [])
    assert len([line for line in settings if STRATEGY in line]) == 2


def test_a_folder_is_checked_as_up_reads_it(tmp_path):
    ManifestFile(tmp_path / "a.yaml").write(pool_v1({STRATEGY: "bad"}))
    ManifestFile(tmp_path / "b.yml").write(pool_v1({STRATEGY: "bad"}, name="second"))
    (tmp_path / "c.txt").write_text("kind: [")
    (tmp_path / ".d.yaml").write_text("kind: [")
    outcome = run("check", "-f", tmp_path)
    assert outcome.returncode == 1
    assert len(FAULT.findall(outcome.stdout)) == 2, outcome.stdout


def test_a_file_that_cannot_be_read_is_exit_2_and_the_others_are_checked(tmp_path):
    ManifestFile(tmp_path / "a.yaml").write(pool_v1({STRATEGY: "bad"}))
    outcome = run("check", "-f", tmp_path / "missing.yaml", "-f", tmp_path / "a.yaml")
    assert outcome.returncode == 2
    assert "missing.yaml" in outcome.stderr
    assert len(FAULT.findall(outcome.stdout)) == 1


def test_check_without_a_file_is_exit_2():
    assert run("check").returncode == 2


# ---- overlay ConfigMaps

REFERENCE_OVERLAY = """\
apiVersion: v1
kind: ConfigMap
metadata:
  name: custom-epp
data:
  deployment: |-
    spec:
      replicas: 1
      template:
        spec:
          affinity:
            podAntiAffinity:
              preferredDuringSchedulingIgnoredDuringExecution:
              - weight: 100
                podAffinityTerm:
                  labelSelector:
                    matchLabels:
                      inference-pool: qwen-pool
                      inference-pool-namespace: default
                  topologyKey: kubernetes.io/hostname
          containers:
          - name: inference-gateway-ext-proc
            resources:
              limits: {cpu: '4', memory: 4G}
              requests: {cpu: 500m, memory: 1G}
"""

POOL_WITH_OVERLAY = f"""\
apiVersion: inference.networking.k8s.io/v1
kind: InferencePool
metadata:
  name: qwen-pool
  annotations: {{{OVERLAY}: custom-epp}}
spec:
  selector: {{matchLabels: {{app: qwen}}}}
  targetPorts: [{{number: 8000}}]
---
"""


def test_the_overlay_of_the_reference_documentation_is_sound(check):
    code, _, faults = check(text=POOL_WITH_OVERLAY + REFERENCE_OVERLAY)
    assert (code, faults) == (0, [])


def test_an_overlay_that_is_not_among_the_files_is_told(check):
    _, _, faults = check(pool_v1({OVERLAY: "elsewhere"}))
    assert [fault["key"] for fault in faults] == [OVERLAY]


def test_yaml_in_an_overlay_that_does_not_parse_is_told_with_its_place_in_the_value(tmp_path):
    broken = REFERENCE_OVERLAY.replace("replicas: 1", "replicas: [1")
    file = ManifestFile(tmp_path / "m.yaml")
    file.write_text(POOL_WITH_OVERLAY + broken)
    outcome = run("check", "-f", file.path)
    assert outcome.returncode == 1
    assert re.search(r"\bdeployment:\d+:\d+\b", outcome.stdout), outcome.stdout


@pytest.mark.parametrize(
    "line, said",
    [
        ("replicas: many", r":17:17: deployment:2:13: spec\.replicas: found"),
        ("replicsa: 1", r":17:7: deployment:2:3: spec\.replicsa: there is no such field"),
        ("paused: true", r":17:7: deployment:2:3: spec\.paused: it is not open to an overlay"),
    ],
)
def test_what_the_controller_would_refuse_is_told_where_it_is_written(line, said, tmp_path):
    file = ManifestFile(tmp_path / "m.yaml")
    file.write_text(POOL_WITH_OVERLAY + REFERENCE_OVERLAY.replace("replicas: 1", line))
    outcome = run("check", "-f", file.path)
    assert outcome.returncode == 1 and re.search(said, outcome.stdout), outcome.stdout


def test_a_field_that_an_administrator_opened_is_sound(tmp_path):
    file = ManifestFile(tmp_path / "m.yaml")
    file.write_text(POOL_WITH_OVERLAY + REFERENCE_OVERLAY.replace("replicas: 1", "paused: true"))
    assert run("check", "-f", file.path, "--allow-overlay", "deployment.spec.paused").returncode == 0


def test_an_unknown_part_of_an_overlay_is_a_fault(check):
    code, _, faults = check(text=POOL_WITH_OVERLAY + REFERENCE_OVERLAY.replace("  deployment:", "  deploymnt:"))
    assert code == 1
    assert len(faults) == 1 and "deployment" in faults[0]["expected"]


def test_a_config_map_that_no_pool_names_is_none_of_our_business(check):
    code, _, faults = check(pool_v1(), {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "x"}, "data": {"a": "[b"}})
    assert (code, faults) == (0, [])


# ---- manifests themselves


def broken_pool(**changes) -> dict:
    pool = pool_v1()
    pool["spec"].update(changes)
    return pool


@pytest.mark.parametrize(
    "pool",
    [
        pytest.param(broken_pool(targetPorts=[]), id="no port"),
        pytest.param(broken_pool(targetPorts=[{"number": 0}]), id="port 0"),
        pytest.param(broken_pool(targetPorts=[{"number": 70000}]), id="port 70000"),
        pytest.param(broken_pool(targetPorts=[{"number": 1}, {"number": 1}]), id="a port twice"),
        pytest.param(broken_pool(targetPorts=[{"number": n} for n in range(1, 10)]), id="nine ports"),
        pytest.param(broken_pool(targetPorts="8000"), id="ports are no list"),
        pytest.param(broken_pool(selector={"matchLabels": {}}), id="no labels"),
        pytest.param(broken_pool(selector=None), id="no selector"),
        pytest.param(broken_pool(appProtocol="ftp"), id="unknown protocol"),
    ],
)
def test_a_pool_that_kubernetes_would_not_take_is_a_fault(pool, check):
    code, _, faults = check(pool)
    assert code == 1 and faults


HOSTILE = {
    "deep": "[" * 20000,
    "deep maps": "a: {" * 5000,
    "aliases": "a: &a [x,x,x,x,x,x,x,x,x]\n"
    + "".join(f"{b}: &{b} [{','.join(['*' + a] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi")),
    "a long line": "kind: " + "x" * 1_000_000,
    "many documents": "---\n" * 50_000,
    "NUL": "kind: a\x00b",
    "merge": "a: &a {<<: *a}",
}


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_text_is_answered_soon_and_never_with_a_crash(text, tmp_path):
    file = ManifestFile(tmp_path / "hostile.yaml")
    file.write_text(text)
    outcome = run("check", "-f", file.path)
    assert outcome.returncode in (0, 1, 2), outcome
    assert "panicked" not in outcome.stderr
