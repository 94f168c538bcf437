"""A hub of data sets on 127.0.0.1: the benchmarks in the layout of their repositories, our own prompts as texts."""

import csv
import gzip
import hashlib
import io
import json
import re
import tarfile
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

import pyarrow
import pyarrow.parquet
import yaml

from sdrrl_trl.languages import LANGUAGES


N = 12  # rows of each split; lm-eval's own tests want at least ten
PROMPTS = json.loads((Path(__file__).parents[1] / "lm_eval_tasks" / "prompts.json").read_text(encoding="utf-8"))
GATED = ("facebook/flores", "openlanguagedata/flores_plus")
FLORES = {language.flores: tag for tag, language in LANGUAGES.items()}
XLSUM = {language.benchmarks.get("xlsum"): tag for tag, language in LANGUAGES.items()}


def texts(tag, n=N):
    """`n` different texts in a language, or in English if we have no prompts in it."""
    tag = (FLORES | XLSUM | {"no": "nb"}).get(tag, tag.partition("_")[0].lower())
    prompts = PROMPTS.get(tag, PROMPTS["en"])
    known = [text for value in prompts.values() for text in ([value] if isinstance(value, str) else value)]
    return [f"{known[i % len(known)]} {i + 1}" for i in range(n)]


def card(configurations):
    """A README with `(name, {split: files}, options)` of each configuration, as the hub reads it."""
    lines = ["---", "configs:"]
    for name, splits, *options in configurations:
        lines += [f"- config_name: {name}", *(f"  {option}" for option in options), "  data_files:"]
        lines += [f"  - split: {split}\n    path: {path}" for split, path in splits.items()]
    return "\n".join([*lines, "---", ""]).encode()


def json_lines(rows):
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def parquet(rows):
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), buffer)
    return buffer.getvalue()


def table(rows, separator=","):
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), delimiter=separator)
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def flores_archive():
    """Like Meta's flores200_dataset.tar.gz, and with a member that must never be unpacked."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        members = {f"flores200_dataset/devtest/{code}.devtest": texts(tag) for code, tag in FLORES.items()}
        for name, lines in {**members, "../outside": ["x"]}.items():
            content = "".join(f"{line}\n" for line in lines).encode()
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return gzip.compress(buffer.getvalue(), mtime=0)


FORMATS = {".parquet": parquet, ".jsonl": json_lines, ".csv": table, ".tsv": lambda rows: table(rows, "\t")}


def fill(value, number, **names):
    """What stands in a row for a value of `fake_hub.yaml`."""
    if isinstance(value, list):
        value = value[number % len(value)]
    if isinstance(value, list):
        return [text.format(**names) for text in value]
    if value == "{i}":
        return number
    return value.format(i=number, **names) if isinstance(value, str) else value


def files_of(path, row, splits, codes=None, pattern=None, options=(), default=None, **_):
    """`{path: content}` of a data set of `fake_hub.yaml`."""
    configurations, files = [("default", {"test": default})] if default else [], {}
    for code in codes.split() if codes else FLORES:
        lines, names = texts(code, 2 * N), {"code": code, "dashed": code.replace("_", "-")}
        rows = [
            {column: fill(value, i, text=lines[i], other=lines[i + N], **names) for column, value in row.items()}
            for i in range(N)
        ]
        for split in splits:
            file = path.format(split=split, **names)
            files[file] = FORMATS[Path(file).suffix](rows[::-1] if row.get("id") == "{i}" else rows)  # in any order
        if pattern:
            configurations.append((code, {split: pattern.format(split=split, **names) for split in splits}, *options))
    return files | ({"README.md": card(configurations)} if pattern else {})


def repositories():
    """`{id: {revision: {path: content}}}`. "raw" holds what does not come from the hub."""
    data_sets = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))
    repos = {name: {data_set["revision"]: files_of(**data_set)} for name, data_set in data_sets.items()}

    codes = "en zh it vi ar ko th bn sw jv".split()
    rows = [{"id": i, "source": "x", "tags": "['x']", **{c: texts(c)[i] for c in codes}} for i in range(N)]
    files = {"MultiJail.csv": b"\xef\xbb\xbf" + table(rows), "README.md": b"---\nlicense: mit\n---\n"}
    repos["DAMO-NLP-SG/MultiJail"] = {"189375ca64f5c09f8db2b22f833c57c4418c55ab": files}

    codes = "ar da de en es fi fr hu it ja km ko nl no pl pt ru sv th tr vi zh_cn zh_hk zh_tw he ms".split()
    items = []
    for i in range(2 * N):
        kind = ("entity", "number", "unanswerable", "long_answer")[i % 4]
        answer = {"type": kind, "text": None if i % 4 > 1 else f"{i}.0"}
        answers = {c: [answer] for c in codes}
        if kind == "entity":
            answers = {c: [answer | {"text": texts(c, 2 * N)[i], "aliases": ["Oslo"]}] for c in codes}
        items.append({"example_id": i, "queries": {c: f"{texts(c, 2 * N)[i]}?" for c in codes}, "answers": answers})
    raw = {"mkqa.jsonl.gz": gzip.compress(json_lines(items)), "flores200_dataset.tar.gz": flores_archive()}
    repos["raw"] = {"": raw}
    return repos


def write_checkout(folder):
    """What the tasks `sdrrl_published` read of CC-Tuning's repository, with prompts of our own."""
    benchmarks = ("XNLI", "_sample", "123"), ("XStoryCloze", "", "12"), ("MMMLU", "_sample", "ABCD")
    for benchmark, ending, choices in benchmarks:
        for tag in LANGUAGES:
            rows = {"split": [{"instruction": f"{text}:"} for text in texts(tag)]}
            rows["ans"] = [choices[i % len(choices)] for i in range(N)]
            for kind, content in rows.items():
                file = folder / "Inference" / "data" / benchmark / f"{kind}{ending}" / f"{tag}.json"
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(json_lines(content))
    return folder


@contextmanager
def serve(repos, gated=GATED):
    """Serves repositories as far as `datasets` asks; gives the address. `gated` ones refuse whoever has no token."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True  # it holds every body back for 40 ms

        def answer(self):
            path, _, query = self.path.partition("?")
            token, recursive = "Authorization" in self.headers, "recursive=true" in query
            status, headers, content = respond(unquote(path), token, recursive)
            self.send_response(status)
            for key, value in {"Content-Length": str(len(content)), **headers}.items():
                self.send_header(key, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

        do_GET = do_HEAD = answer

        def log_message(self, *args):
            pass

    def respond(path, token, recursive):
        raw = repos["raw"][""].get(path.removeprefix("/raw/"))
        if raw is not None:
            return 200, {}, raw
        asked = re.fullmatch(r"(?:/api)?/datasets/([^/]+/[^/]+)/(resolve|revision|tree)/(.+)", path)
        if not asked or asked[1] not in repos:
            return 401, {"X-Error-Code": "RepoNotFound"}, b""
        name, kind, rest = asked.groups()
        revisions = repos[name] | {commit(revision): files for revision, files in repos[name].items()}
        revision = next((r for r in revisions if f"{rest}/".startswith(f"{r}/")), None)
        if revision is None:
            return 404, {"X-Error-Code": "RevisionNotFound"}, b""
        files, rest, sha = revisions[revision], rest[len(revision) + 1 :], commit(revision)
        if name in gated and kind != "revision" and not token:
            return 401, {"X-Error-Code": "GatedRepo"}, b""
        if kind == "revision":
            return as_json({"id": name, "sha": sha, "private": False, "gated": name in gated, "tags": []})
        if kind == "tree":
            depth = None if recursive else 1
            inside = [e for e in entries(files) if Path(rest) in list(Path(e["path"]).parents)[:depth]]
            return as_json(inside) if inside else (404, {"X-Error-Code": "EntryNotFound"}, b"")
        if rest not in files:
            return 404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": sha}, b""
        etag = hashlib.sha1(files[rest]).hexdigest()
        return 200, {"ETag": f'"{etag}"', "X-Repo-Commit": sha, "Accept-Ranges": "none"}, files[rest]

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def commit(revision):
    """The commit of a revision: itself, or one made up for a branch."""
    return revision if re.fullmatch("[0-9a-f]{40}", revision) else hashlib.sha1(revision.encode()).hexdigest()


def entries(files):
    found = {}
    for file, content in files.items():
        oid = hashlib.sha1(content).hexdigest()
        found[file] = {"type": "file", "path": file, "size": len(content), "oid": oid}
        for parent in list(Path(file).parents)[:-1]:
            found[str(parent)] = {"type": "directory", "path": str(parent), "size": 0, "oid": "0" * 40}
    return list(found.values())


def as_json(value):
    return 200, {"Content-Type": "application/json"}, json.dumps(value).encode()
