"""The shipped dashboards, rules and examples, with their knobs turned: grafana/ as a user's own files.

`grafana` lies beside this module: in a wheel as files, in a checkout as a link to the folder at the top.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from exporter.errors import UsageError, VirtgaugeError
from exporter.nearest import nearest
from exporter.shown_thresholds import Turned, turn

FOLDER = Path(__file__).parent / "grafana"
RULES = Path("alerts") / "virtgauge.rules.yml"
_TEMPLATE = Path("alerts") / "virtgauge.rules.template.yml"
_COPIED = ("alerts/runbooks", "provisioning", "provisioning-more", "examples", "rules")
_PLACE = re.compile(r"<<(\w+)>>")


def knobs() -> dict[str, Any]:
    """The value of each knob by default."""
    return {name: knob["value"] for name, knob in _knobs().items()}


def meanings() -> dict[str, str]:
    """What each knob means."""
    return {name: str(knob["meaning"]) for name, knob in _knobs().items()}


def turned(changes: Mapping[str, str]) -> dict[str, Any]:
    """The knobs with `changes` (name to text).

    Raises UsageError for an unknown name or a threshold that is no number.
    """
    values = knobs()
    for name, text in changes.items():
        if name not in values:
            raise UsageError(f"there is no knob {name!r}; the nearest is {nearest(name, values)}; "
                             "see 'virtgauge dashboards knobs'")
        if isinstance(values[name], str):
            if "\n" in text or "<<" in text:
                raise UsageError(f"knob {name} takes one line of text")
            values[name] = text
        else:
            values[name] = _number(name, text)
    return values


def rules(values: Mapping[str, Any]) -> str:
    """The Prometheus rule file with these knobs. Raises UsageError where a knob's text breaks the file."""
    template = (FOLDER / _TEMPLATE).read_text()
    template = template[template.index("groups:"):]
    text = _PLACE.sub(lambda found: str(values[found[1]]), template)
    try:
        yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UsageError("the rules are no YAML with these knobs; take quotes and backslashes out of them") from error
    return "# Written by virtgauge from its template; change the knobs, not this file.\n" + text


def dashboards(job: str, values: Mapping[str, Any]) -> dict[str, str]:
    """Each dashboard's text by file name: its alerts link to the runbooks, its thresholds are those of the rules.

    `job` is a regular expression that bounds the variable Job, or empty. The control service has a job of its own.
    """
    found = {}
    runbooks = json.dumps(values["runbooks"])[:-1]
    turned = [Turned(knob["shown"], knob["value"], values[name]) for name, knob in _knobs().items()
              if "shown" in knob and knob["value"] != values[name]]
    for file in sorted((FOLDER / "dashboards").glob("*.json")):
        document = json.loads(file.read_text().replace(f'"{knobs()["runbooks"]}/', f"{runbooks}/"))
        for variable in document["templating"]["list"] if job else ():
            if variable["name"] == "job" and "virtgauge_control" not in variable["definition"]:
                variable["regex"] = f"/{job}/"
        turn(document, turned)
        found[file.name] = json.dumps(document, indent=1, sort_keys=True, ensure_ascii=False) + "\n"
    return found


def export(folder: Path, job: str, changes: Mapping[str, str]) -> list[Path]:
    """Writes all into `folder`, made where it is missing; returns the files. Other files in it stay.

    Raises UsageError for a bad knob before anything is written, VirtgaugeError where the folder cannot be written.
    """
    if job and "selector" not in changes:
        changes = {**changes, "selector": f"job=~{json.dumps(job)}"}
    values = turned(changes)
    texts = {f"dashboards/{name}": text for name, text in dashboards(job, values).items()}
    texts[str(RULES)] = rules(values)
    try:
        for name, text in texts.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(text)
        for name in _COPIED:
            shutil.copytree(FOLDER / name, folder / name, dirs_exist_ok=True)
    except OSError as error:
        raise VirtgaugeError(f"cannot write to {folder}: {error.strerror}; name a folder that you may write") from error
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _knobs() -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = yaml.safe_load((FOLDER / "alerts" / "knobs.yml").read_text())
    return found


def _number(name: str, text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = float("nan")
    if not 0 <= number < float("inf"):
        raise UsageError(f"knob {name} takes a number that is not negative, not {text!r}")
    return int(number) if number == int(number) else number
