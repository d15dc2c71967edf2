"""Stock load generators, unchanged, against simulated servers: k6 and vLLM's own benchmark."""

import json
import os
import subprocess
from pathlib import Path

import pytest

CACHE = Path(os.environ.get("POINTSMAN_CACHE", Path.home() / ".cache/pointsman"))
K6 = CACHE / "programs/bin/k6"
VLLM_PYTHON = os.environ.get("POINTSMAN_VLLM_PYTHON", str(CACHE / "vllm-0.32/bin/python"))
MODELS = Path(os.environ.get("POINTSMAN_MODELS", CACHE / "models"))
REQUESTS = 200

K6_SCRIPT = """
import http from 'k6/http';
import { check } from 'k6';
export const options = { vus: 16, iterations: %d };
const ask = { model: 'sim', max_tokens: 8, messages: [{ role: 'user', content: 'Which track?' }] };
export default function () {
  const stream = __ITER %% 2 == 0;
  const answer = http.post(__ENV.GATEWAY + '/v1/chat/completions', JSON.stringify({ ...ask, stream }),
    { headers: { 'content-type': 'application/json' } });
  check(answer, { served: (a) => a.status == 200 && (!stream || a.body.includes('[DONE]')) });
}
"""

VLLM_BENCH = """
import argparse, asyncio
from vllm.benchmarks import serve
parser = argparse.ArgumentParser()
serve.add_cli_args(parser)
serve.main(parser.parse_args())
"""


@pytest.fixture
def pointsman(start):
    return start("--sim", 3)


def test_k6_sees_every_request_served(pointsman, tmp_path):
    script, summary = tmp_path / "load.js", tmp_path / "summary.json"
    script.write_text(K6_SCRIPT % REQUESTS)
    command = [str(K6), "run", "--quiet", "--no-usage-report", "--summary-export", str(summary), str(script)]
    subprocess.run(command, env={**os.environ, "GATEWAY": pointsman.gateway}, check=True, timeout=100)
    metrics = json.loads(summary.read_text())["metrics"]
    assert metrics["checks"]["passes"] == REQUESTS and metrics["checks"]["fails"] == 0
    assert pointsman.metrics().value("pointsman_requests_total", reason="served") == REQUESTS


@pytest.mark.timeout(300)
def test_vllms_own_benchmark_sees_every_request_served(pointsman, tmp_path):
    options = {
        "backend": "openai-chat",
        "base-url": pointsman.gateway,
        "endpoint": "/v1/chat/completions",
        "model": "sim",
        "tokenizer": MODELS / "tiny",
        "dataset-name": "random",
        "random-input-len": 200,
        "random-output-len": 8,
        "num-prompts": REQUESTS,
        "max-concurrency": 16,
        "result-dir": tmp_path,
        "result-filename": "result.json",
    }
    words = [str(word) for name, value in options.items() for word in (f"--{name}", value)]
    offline = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}
    command = [VLLM_PYTHON, "-c", VLLM_BENCH, "--save-result", *words]
    subprocess.run(command, env={**os.environ, **offline}, check=True, timeout=280)
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["completed"] == REQUESTS and result["failed"] == 0
    assert result["mean_ttft_ms"] > 0
