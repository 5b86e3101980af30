"""What MkDocs does beyond rendering pages: generated reference tables, and links out of the folder of pages.

* ``<!-- generated: NAME -->`` on a page becomes the text that :data:`GENERATED` makes for the name, from the code itself.
* A relative link to a file or folder of the repository outside ``docs`` works when pages are read in the repository; for the site
  each such target becomes a page under ``repository/`` that shows it, and the link is changed to it. A target that does not exist
  stays as it is, and MkDocs reports it.
* What the pages say completely is checked: every public name of the library and every variable of the environment.
"""

from __future__ import annotations

import collections
import functools
import inspect
import logging
import os
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
SHOWN = "repository"
CODE = ("ghn", "pipelines", "dags", "infra", "Dockerfile")
INCLUDED = {"CHANGELOG.md": "changelog.md", "CONTRIBUTING.md": "contributing.md"}
"""Pages at the top of the repository, and where the site has them."""
LANGUAGES = {".py": "python", ".toml": "toml", ".yaml": "yaml", ".yml": "yaml", ".json": "json", ".sh": "bash"}
LINK = re.compile(r"(\]\()([^)\s#]+)(#[^)\s]*)?\)")
MARKER = re.compile(r"^<!-- generated: ([a-z-]+) -->$", re.MULTILINE)
VARIABLE = re.compile(r"\bGHN_[A-Z0-9]+(?:_[A-Z0-9]+)*\b")
log = logging.getLogger("mkdocs.hooks.docs")

sys.path.insert(0, str(ROOT))  # what the pages describe is the code beside them


# Links out of the folder of pages


def on_files(files: Any, config: Any) -> Any:
    """Add a page for every file or folder of the repository that some page links to."""
    from mkdocs.structure.files import File

    found = {target for file in DOCS.rglob("*.md") for target in _outside(file.read_text(), file.relative_to(DOCS))}
    for name in INCLUDED:
        found |= set(_outside((ROOT / name).read_text(), Path("..", name)))
    for target in sorted(found):
        files.append(File.generated(config, f"{SHOWN}/{target}.md", content=_show(target)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Fill in generated text, and lead links out of the folder of pages to the pages that show their targets."""
    source = Path(page.file.src_uri)
    if source.parts[0] == SHOWN:
        return markdown
    _check(source, markdown)

    def change(match: re.Match[str]) -> str:
        target = _resolve(match[2], source)
        if target is None:
            return match[0]
        shown = INCLUDED.get(target, f"{SHOWN}/{target}.md")
        return f"{match[1]}{os.path.relpath(shown, source.parent)})"

    return LINK.sub(change, MARKER.sub(lambda match: GENERATED[match[1]](), markdown))


def on_page_content(html: str, page: Any, config: Any, files: Any) -> str:
    """Take Sphinx's roles out of docstrings: their names stand in code letters already."""
    return re.sub(r":(?:func|class|meth|data|attr|mod):(<code>)~?", r"\1", html)


def _outside(text: str, source: Path) -> Iterator[str]:
    for match in LINK.finditer(text):
        target = _resolve(match[2], source)
        if target is not None and target not in INCLUDED:
            yield target


def _resolve(link: str, source: Path) -> str | None:
    """Return the path in the repository of a link that leads out of the folder of pages; else ``None``."""
    if ":" in link or link.startswith("/"):
        return None
    path = os.path.normpath(DOCS / source.parent / link)
    if path == str(DOCS) or path.startswith(f"{DOCS}{os.sep}") or not Path(path).exists():
        return None
    return os.path.relpath(path, ROOT)


def _show(target: str) -> str:
    """Return a page with the text of a file, or of all files of a folder."""
    path = ROOT / target
    listed = subprocess.run(["git", "ls-files", "--", target], cwd=ROOT, capture_output=True, text=True)
    names = listed.stdout.split() or [str(file.relative_to(ROOT)) for file in sorted(path.rglob("*")) if file.is_file()]
    inside = [name for name in names if Path(name).parent == Path(target)] or names[:20]  # not what lies deeper
    names = [target] if path.is_file() else inside
    parts = [f"# {target}", "As it stands in the repository."]
    for name in names:
        text = (ROOT / name).read_text(errors="replace").rstrip("\n")
        language = LANGUAGES.get(Path(name).suffix, "text")
        parts += [*([f"## {name}"] if name != target else []), f"`````{language}\n{text}\n`````"]
    return "\n\n".join(parts) + "\n"


# Text made from the code


def commands() -> str:
    """Every command of ``ghn`` with its arguments and options, from click."""
    import click

    from pipelines.cli import cli

    def walk(command: click.Command, name: str) -> Iterator[tuple[str, click.Command]]:
        yield name, command
        for child in getattr(command, "commands", {}).values():
            yield from walk(child, f"{name} {child.name}")

    parts = []
    for name, command in walk(cli, "ghn"):
        context = click.Context(command, info_name=name)
        words, _, example = inspect.cleandoc(command.help or "").partition("\b\nExample:\n")
        parts.append(f"## {name}")
        parts.append(" ".join(words.replace("\b", "").split()))
        parts.append(f"    {name} {' '.join(command.collect_usage_pieces(context))}")
        rows = [_option(option) for option in command.params if isinstance(option, click.Option)]
        if rows:
            parts.append(_table(("option", "takes", "default", "variable", ""), rows))
        if children := getattr(command, "commands", {}):
            links = (f"[`{name} {child}`](#{name.replace(' ', '-')}-{child})" for child in children)
            parts.append("Commands: " + ", ".join(links))
        if example.strip():
            parts.append("For example:\n\n" + "\n".join(f"    {line.strip()}" for line in example.strip().splitlines()))
    return "\n\n".join(parts)


def _option(option: Any) -> tuple[str, ...]:
    kind = option.type
    if option.is_flag:
        takes = "(nothing)"
    elif option.metavar:
        takes = f"`{option.metavar}`"
    elif hasattr(kind, "choices"):
        takes = ", ".join(f"`{choice}`" for choice in kind.choices)
    elif hasattr(kind, "min"):
        number = "whole number" if "Int" in type(kind).__name__ else "number"
        low, high = kind.min, kind.max
        takes = f"{number}, {low} to {high}" if None not in (low, high) else number
        takes += f" from {low}" if high is None and low is not None else ""
    else:
        takes = {"text": "text", "integer": "whole number", "path": "path"}.get(kind.name, kind.name)
    if option.multiple:
        takes += ", may be repeated"
    default = "required" if option.required else option.default
    if option.is_flag or default is None or "UNSET" in repr(default) or default == ():
        default = ""
    shown = default if default in ("", "required") else f"`{default}`"
    variable = f"`{option.envvar}`" if option.envvar else ""
    return ", ".join(f"`{name}`" for name in option.opts), takes, shown, variable, option.help or ""


def recipe_keys() -> str:
    """Every key of a recipe with type, default and range, from ``pipelines/recipe.py``."""
    from pipelines.recipe import Recipe

    parts = []
    for section, field in Recipe.model_fields.items():
        model = field.annotation
        if not hasattr(model, "model_fields"):
            continue
        words = " ".join(inspect.getdoc(model).replace("``", "`").split())
        words = re.sub(r":class:`~?([\w.]+)`", r"`\1`", words)
        rows = []
        for key, value in model.model_fields.items():
            marks = {"ge": "from", "gt": "above", "le": "to", "lt": "below"}
            bounds = [f"{word} {getattr(m, a):,}" for m in value.metadata for a, word in marks.items() if hasattr(m, a)]
            sizes = {getattr(m, a) for m in value.metadata for a in ("min_length", "max_length") if hasattr(m, a)}
            bounds += [f"{size} values" for size in sizes]
            kind = _kind(value.annotation)
            rows.append((f"`{key}`", kind, f"`{_toml(value.default)}`", ", ".join(bounds), value.description or ""))
        parts += [f"## {section}", words, _table(("key", "type", "default", "range", ""), rows)]
    return "\n\n".join(parts)


def recipes() -> str:
    """What each named recipe changes, as it is written."""
    from pipelines.recipe import RECIPES

    parts = []
    for file in sorted(RECIPES.glob("*.toml")):
        parts += [f"### {file.stem}", f"```toml\n{file.read_text().rstrip()}\n```"]
    return "\n\n".join(parts)


def storage_variables() -> str:
    """Variables of storage, from their settings."""
    from pipelines.storage.settings import StorageSettings

    return _settings(StorageSettings)


def serving_variables() -> str:
    """Variables of the model server, from their settings."""
    from pipelines.serving.limits import Limits

    return _settings(Limits)


def _settings(model: Any) -> str:
    rows = []
    for name, field in model.model_fields.items():
        factory = field.default_factory is not None
        default = "by the container" if factory else "none" if field.default is None else f"`{field.default}`"
        rows.append((f"`{model.prefix}{name.upper()}`", _kind(field.annotation), default, field.description or ""))
    return _table(("variable", "type", "default", ""), rows)


def exit_codes() -> str:
    """Exit codes, from the classes of errors."""
    import ghn.errors

    def walk(kind: type) -> Iterator[type]:
        yield kind
        for child in kind.__subclasses__():
            yield from walk(child)

    classes = collections.defaultdict(list)
    for kind in walk(ghn.errors.GHNError):
        classes[kind.exit_code].append(kind)
    rows = []
    for code, kinds in sorted(classes.items()):
        first = kinds[0]
        text = "any other deliberate error; or a traceback, which is a bug" if code == 1 else _first_line(first)
        names = ", ".join(f"`{kind.__name__}`" for kind in kinds[:1])
        rows.append((str(code), names, text))
    known = {
        "0": "done",
        "99": "nothing to do (`ghn evaluate --optional`): Airflow's task is skipped",
        "130": "interrupted from the keyboard (Ctrl-C)",
    }
    rows += [(code, "", text) for code, text in known.items()]
    return _table(("code", "error", "meaning"), sorted(rows, key=lambda row: int(row[0])))


def included(name: str) -> str:
    """A page that lies at the top of the repository, without its heading and with its links made from here."""

    def change(match: re.Match[str]) -> str:
        if ":" in match[2] or match[2].startswith("#"):
            return match[0]
        return f"{match[1]}{os.path.relpath(ROOT / match[2], DOCS)}{match[3] or ''})"

    return LINK.sub(change, (ROOT / name).read_text().partition("\n")[2])


GENERATED = {
    "commands": commands,
    "recipe-keys": recipe_keys,
    "recipes": recipes,
    "storage-variables": storage_variables,
    "serving-variables": serving_variables,
    "exit-codes": exit_codes,
    "changelog": functools.partial(included, "CHANGELOG.md"),
    "contributing": functools.partial(included, "CONTRIBUTING.md"),
}


def _kind(annotation: Any) -> str:
    text = str(annotation if not isinstance(annotation, type) else annotation.__name__)
    text = text.replace("typing.Literal", "").replace("Literal", "").replace("| None", "or nothing")
    text = re.sub(r"^\[(.*)\]$", lambda m: m[1].replace(", ", " or "), text)
    words = {"str": "text", "int": "whole number", "float": "number", "bool": "`true` or `false`"}
    for name, word in words.items():
        text = re.sub(rf"\b{name}\b", word, text)
    return re.sub(r"list\[([^\]]*)\]", r"list of \1s", text)


def _toml(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return "[" + ", ".join(f"{item:.4g}" if isinstance(item, float) else str(item) for item in value) + "]"
    return str(value)


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    lines = [tuple(head), *(tuple(row) for row in rows)]
    lines.insert(1, tuple("---" for _ in lines[0]))
    return "\n".join("| " + " | ".join(cell.replace("|", "&#124;") for cell in line) + " |" for line in lines)


def _first_line(thing: Any) -> str:
    return (inspect.getdoc(thing) or "").partition("\n")[0].rstrip(".")


# Checks


def _check(source: Path, markdown: str) -> None:
    if source == Path("reference/library.md"):
        import ghn

        for name in sorted(set(ghn.__all__) - set(re.findall(r"^::: ghn\..*?(\w+)$", markdown, re.MULTILINE))):
            log.warning("%s: ghn.%s has no entry", source, name)
    if source == Path("reference/environment.md"):
        named = set(VARIABLE.findall(markdown + storage_variables() + serving_variables()))
        for name in sorted(_variables() - named):
            log.warning("%s: the code names %s, the page does not", source, name)


@functools.cache
def _variables() -> frozenset[str]:
    """Return the names of this project's variables in the code; parts of names (``GHN_SERVE_``) are none."""
    found = set()
    for part in CODE:
        path = ROOT / part
        for file in [path] if path.is_file() else path.rglob("*"):
            if file.is_file() and "__pycache__" not in file.parts and "lock" not in file.parts:
                found |= set(VARIABLE.findall(file.read_text(errors="ignore")))
    return frozenset(found)
