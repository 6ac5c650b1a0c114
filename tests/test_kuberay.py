"""The manifest for Kubernetes, as far as it can be read without a cluster."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from nas.job import config

FOLDER = Path(__file__).parents[1] / "examples" / "kuberay"


@pytest.fixture(scope="module")
def manifest() -> dict[str, Any]:
    return {each["kind"]: each for each in yaml.safe_load_all((FOLDER / "rayjob.yaml").read_text(encoding="utf-8"))}


@pytest.fixture(scope="module")
def containers(manifest: dict[str, Any]) -> list[dict[str, Any]]:
    cluster = manifest["RayJob"]["spec"]["rayClusterSpec"]
    pods = [each["template"]["spec"] for each in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"])]
    claims = [{volume["name"]: volume for volume in pod["volumes"]} for pod in pods]
    assert claims[0] == claims[1]
    return [container for pod in pods for container in pod["containers"]]


def test_every_node_sees_the_same_home_at_the_same_path(containers: list[dict[str, Any]]) -> None:
    homes, mounts = [], []
    for container in containers:
        homes.append({each["name"]: each["value"] for each in container["env"]}["NAS_HOME"])
        mounts.append({each["mountPath"]: each["name"] for each in container["volumeMounts"]})
    assert len(set(homes)) == 1
    assert mounts[0] == mounts[1]
    assert any(Path(homes[0]).is_relative_to(path) and name == "nas" for path, name in mounts[0].items())


def test_its_job_is_a_job(manifest: dict[str, Any], tmp_path: Path) -> None:
    parent = tmp_path / "parents" / "Llama-3.2-1B-Instruct"
    parent.mkdir(parents=True)
    (parent / "config.json").write_text("{}", encoding="utf-8")
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "train.txt").write_text("Some text.\n", encoding="utf-8")
    command, _, file = manifest["RayJob"]["spec"]["entrypoint"].rpartition(" ")
    assert command == "nas search"
    text = manifest["ConfigMap"]["data"][Path(file).name]
    request = config.parse(text.replace("/nas/", f"{tmp_path}/"), Path(file).name)
    assert [str(limit.metric) for limit in request.budget] == ["latency"]


def test_the_cluster_and_its_image_have_one_ray_and_ask_for_a_token(manifest: dict[str, Any]) -> None:
    cluster = manifest["RayJob"]["spec"]["rayClusterSpec"]
    image = (FOLDER / "Containerfile").read_text(encoding="utf-8")
    assert set(re.findall(r"(?:ray:|ray==)(\d+\.\d+\.\d+)", image)) == {str(cluster["rayVersion"])}
    assert cluster["authOptions"] == {"mode": "token"}
