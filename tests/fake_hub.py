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

from sdrrl_trl.languages import LANGUAGES


N = 12  # rows of each split; lm-eval's own tests want at least ten
PROMPTS = json.loads((Path(__file__).parents[1] / "lm_eval_tasks" / "prompts.json").read_text(encoding="utf-8"))
GATED = ("facebook/flores", "openlanguagedata/flores_plus")
FLORES = {language.flores: tag for tag, language in LANGUAGES.items()}
XLSUM = {language.benchmarks.get("xlsum"): tag for tag, language in LANGUAGES.items()}


def texts(tag, n=N):
    """`n` different texts in a language, or in English if we have no prompts in it."""
    prompts = PROMPTS.get({"no": "nb", "zh_cn": "zh"}.get(tag, tag), PROMPTS["en"])
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


def repositories():
    """`{id: {revision: {path: content}}}`. "raw" holds what does not come from the hub."""
    repos = {}

    codes = "ar bg de el en es fr hi ru sw th tr ur vi zh".split()
    splits = ("train", "validation", "test")
    files = {"README.md": card([(c, {s: f"{c}/{s}-*" for s in splits}) for c in codes])}
    for c in codes:
        lines = texts(c, 2 * N)
        rows = [{"premise": lines[i], "hypothesis": lines[i + N], "label": i % 3} for i in range(N)]
        files |= {f"{c}/{split}-00000-of-00001.parquet": parquet(rows) for split in splits}
    repos["facebook/xnli"] = {"b8dd5d7af51114dbda02c0e3f6133f332186418e": files}

    files = {"README.md": card([(c, {"test": f"data/{c}.jsonl"}) for c in FLORES])}
    for c in FLORES:
        rows = [
            {"link": "https://x.org", "question_number": 1, "flores_passage": line, "question": f"{line}?"}
            | {f"mc_answer{k}": f"{line} ({k})" for k in range(1, 5)}
            | {"correct_answer_num": str(i % 4 + 1), "dialect": c, "ds": "2023-05-03"}
            for i, line in enumerate(texts(FLORES[c]))
        ]
        files[f"data/{c}.jsonl"] = json_lines(rows)
    repos["facebook/belebele"] = {"7899cdfa4e1e0d733fd77c848e2c273cb1d32be2": files}

    locales = "AR_XY BN_BD DE_DE ES_LA FR_FR HI_IN ID_ID IT_IT JA_JP KO_KR PT_BR SW_KE YO_NG ZH_CN".split()
    path = {x: f"test/mmlu_{x.replace('_', '-')}.csv" for x in locales}
    files = {"README.md": card([("default", {"test": "test/*.csv"}), *((x, {"test": path[x]}) for x in locales)])}
    for x in locales:
        rows = [
            {"": i, "Question": f"{line}?", **{c: f"{line} {c.lower()}" for c in "ABCD"}, "Answer": "ABCD"[i % 4]}
            | {"C": "None", "D": "NA"}  # text, not missing cells
            | {"Subject": f"college_physics_test.csv_{x}" if i % 2 else "college_physics"}
            for i, line in enumerate(texts(x[:2].lower()))
        ]
        files[path[x]] = table(rows)
    repos["openai/MMMLU"] = {"325a01dc3e173cac1578df94120499aaca2e2504": files}
    rows = [
        {"question": f"{line}?", "subject": "law", "choices": [f"{line} {c}" for c in "abcd"], "answer": i % 4}
        for i, line in enumerate(texts("en"))
    ]
    files = {"README.md": card([("all", {"test": "all/test-*"})]), "all/test-00000-of-00001.parquet": parquet(rows)}
    repos["cais/mmlu"] = {"c30699e8356da336a370243923dbaf21066bb9fe": files}

    rows = [
        {"prompt": line, "response_0": f"{line} no", "response_1": f"{line} yes, well", "safer_response_id": i % 2}
        | {"is_response_0_safe": i % 3 != 0, "is_response_1_safe": i % 3 == 0, "response_0_severity_level": 0}
        for i, line in enumerate(texts("en"))
    ]
    files = {"README.md": card([("default", {"test": "data/*/test.jsonl"})]), "data/m/test.jsonl": json_lines(rows)}
    repos["PKU-Alignment/PKU-SafeRLHF"] = {"9421ffafec3fa40a1f1a7d567b4d525079477ecb": files}

    codes = "en zh it vi ar ko th bn sw jv".split()
    rows = [{"id": i, "source": "x", "tags": "['x']", **{c: texts(c)[i] for c in codes}} for i in range(N)]
    files = {"MultiJail.csv": b"\xef\xbb\xbf" + table(rows), "README.md": b"---\nlicense: mit\n---\n"}
    repos["DAMO-NLP-SG/MultiJail"] = {"189375ca64f5c09f8db2b22f833c57c4418c55ab": files}

    codes = "ar en es eu hi id my ru sw te zh".split()
    name = "spring2016.val.{}.tsv.split_20_80_{}.tsv"
    splits = ("train", "eval")
    files = {"README.md": card([(c, {s: name.format(c, s) for s in splits}, 'sep: "\\t"') for c in codes])}
    for c in codes:
        rows = [
            {"story_id": f"s{i}", **{f"input_sentence_{k}": f"{line} {k}." for k in range(1, 5)}}
            | {"sentence_quiz1": f"{line} 5.", "sentence_quiz2": f"{line} 6.", "answer_right_ending": i % 2 + 1}
            for i, line in enumerate(texts(c))
        ]
        files |= {name.format(c, split): table(rows, "\t") for split in splits}
    repos["juletxara/xstory_cloze"] = {"c4c2d88a1ec8b37fe22166d2a610f272726724b6": files}

    old, plus = {}, {}
    for c in FLORES:
        facts = {"url": "https://x.org", "domain": "wikinews", "topic": "health"}
        lines = list(enumerate(texts(FLORES[c]), 1))[::-1]  # rows come in any order
        rows = [{"id": i, **facts, "sentence": sentence} for i, sentence in lines]
        old[f"data/language/{c}/devtest-00000-of-00001.parquet"] = parquet(rows)
        plus[f"devtest/{c}.jsonl"] = json_lines([{"id": i, "iso_639_3": c[:3], "text": s, **facts} for i, s in lines])
    old["README.md"] = card([(c, {"devtest": f"data/language/{c}/devtest-*"}) for c in FLORES])
    plus["README.md"] = card([(c, {"devtest": f"devtest/{c}.jsonl"}) for c in FLORES])
    repos["facebook/flores"] = {"71abf77d8b7beb5cfef59898d6b24d92ab7654fc": old}
    repos["openlanguagedata/flores_plus"] = {"5fec6c13f9e5a4db2f745d4ec0d7c9721ddc4f06": plus}

    files = {}
    languages = "arabic bengali burmese chinese_simplified english french hindi indonesian japanese korean portuguese "
    languages += "russian spanish swahili telugu thai turkish ukrainian urdu vietnamese yoruba"
    for language in languages.split():
        lines = texts(XLSUM[language], 2 * N)
        rows = [{"id": str(i), "url": "u", "title": "t", "summary": lines[i], "text": lines[i + N]} for i in range(N)]
        files[f"{language}/test/0000.parquet"] = parquet(rows)
    repos["csebuetnlp/xlsum"] = {"refs/convert/parquet": files}

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
    for benchmark, ending, choices in (
        ("XNLI", "_sample", "123"),
        ("XStoryCloze", "", "12"),
        ("MMMLU", "_sample", "ABCD"),
    ):
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
