"""What the checks refuse, with which code, and that nothing else escapes."""

import random
from pathlib import Path

import pytest

from attndsl.diagnostics import ArgumentError, ProgramError
from attndsl.semantics import analyse, check_all
from attndsl.source import Source
from attndsl.syntax.parser import load_source

from .programs import codes, errors, program

WRONG = [
    ("mask wndow", "", "E101"),
    ("mask foo(3)", "", "E101"),
    ("mask x; let x = true", "", "E101"),
    ("grid y = 2, x = 2; mask q.z == 1", "", "E101"),
    ("let h = 3", "", "E102"),
    ("mask true", "q_offset: int", "E102"),
    ("mask true", "exp: float", "E102"),
    ("let v = 1; let v = 2", "", "E103"),
    ("let v = 1", "v: int", "E103"),
    ("mask true", "v: int, v: int", "E103"),
    ("let n = 1", "t: float[n]", "E103"),
    ("grid y = 2, y = 2", "", "E103"),
    ("mask q - k", "", "E104"),
    ("mask q", "", "E104"),
    ("score k <= q", "", "E104"),
    ("weights k <= q", "", "E104"),
    ("mask q and true", "", "E104"),
    ("mask not q", "", "E104"),
    ("mask (k <= q) + 1 == 2", "", "E104"),
    ("mask (k <= q) == 1", "", "E104"),
    ("mask true < false", "", "E104"),
    ("score 1 if q else 2", "", "E104"),
    ("score 1 if true else false", "", "E104"),
    ("score exp(true)", "", "E104"),
    ("score w(3)", "w: int", "E104"),
    ("grid x = 1.5", "", "E104"),
    ("score exp(1, 2)", "", "E105"),
    ("score min(1)", "", "E105"),
    ("score exp", "", "E105"),
    ("score dot(query)", "", "E105"),
    ("mask score > 0", "", "E106"),
    ("mask dot(query, t[q]) > 0", "t: float[Nq, D]", "E106"),
    ("let s = score; mask s > 0", "", "E106"),
    ("mask out > 0", "", "E106"),
    ("score d + 1", "", "E106"),
    ("output out * k", "", "E106"),
    ("output score", "", "E106"),
    ("weights softmax(sink = k)", "", "E106"),
    ("weights softmax(sink = score)", "", "E106"),
    ("mask q.x == 1", "", "E106"),
    ("grid x = 4; mask h.x == 1", "", "E106"),
    ("grid x = q", "", "E106"),
    ("grid x = t[0]", "t: int[B]", "E106"),
    ("score query", "", "E106"),
    ("score dot(key, t[k])", "t: float[Nk, D]", "E106"),
    ("score scale * 2", "", "E106"),
    ("let s = score; score 2 * score; weights s", "", "E106"),
    ("grid x = 4; grid y = 4", "", "E109"),
    ("weights softmax; weights sigmoid(score)", "", "E109"),
    ("mask true", "t: const int[B]", "E110"),
    ("mask true", "t: int[B] = 3", "E110"),
    ("mask true", "w: int = 1.5", "E110"),
    ("mask true", "w: float = true", "E110"),
    ("mask true", "w: bool = 1", "E110"),
    ("mask true", "w: int = 2147483648", "E110"),
    ("mask true", "f: float, t: int[f]", "E110"),
    ("mask true", "t: int[q]", "E110"),
    ("mask true", "t: int[score]", "E110"),
    ("mask true", "t: int[3 - 4]", "E110"),
    ("mask true", "t: int[2 * R]", "E101"),
    ("score t[q, k]", "t: float[Nq]", "E111"),
    ("score t[score]", "t: float[Nq]", "E111"),
    ("score t[k <= q]", "t: float[Nq]", "E111"),
    ("score w[q]", "w: float", "E111"),
    ("score t(q)", "t: float[Nq]", "E111"),
    ("score t", "t: float[Nq]", "E111"),
    ("score exp[q]", "", "E111"),
    ("score query[q]", "", "E111"),
    ("score dot(query, t[q])", "t: float[Nq, n]", "E111"),
    ("score dot(query, t[q, k])", "t: float[Nq, D]", "E111"),
    ("score dot(query, 3)", "", "E111"),
    ("mask k % 0 == 0", "", "E113"),
    ("score score / 0", "", "E113"),
    ("grid x = 0", "", "E113"),
    ("mask q ** 65 > 0", "", "E113"),
    ("mask 9 ** 9 ** 9 ** 9 > k", "", "E006"),
    ("mask k < 2 ** 62 * 2", "", "E006"),
    ("score " + "exp(" * 60 + "score" + ")" * 60, "", ""),
    ("score " + " + ".join(["score"] * 200), "", "E005"),
]


@pytest.mark.parametrize(("body", "parameters", "code"), WRONG)
def test_wrong_programs(body: str, parameters: str, code: str) -> None:
    assert codes(body, parameters) == ([code] if code else [])


def test_definitions() -> None:
    assert codes("mask true", head="def f = g\ndef g = f") == ["E107"]
    assert codes("mask f", head="def f = f") == ["E107"]
    assert codes("mask true", head="def f(x) = x + f(1)") == ["E107"]
    assert codes("mask true", head="def f = nothing(3)") == ["E101"]
    assert codes("mask true", head="def f(x, x) = x") == ["E103"]
    assert codes("mask true", head="def f = 1\ndef f = 2") == ["E103"]
    assert codes("mask true", head="def relu(x) = x") == ["E102"]
    assert codes("mask f(1) == f", head="def f(x) = x") == ["E105"]
    assert codes("mask true", "f: int", head="def f(x) = x") == ["E103"]


def test_a_def_sees_nothing_of_the_attention() -> None:
    [error] = errors("def near = q - k < w\nattention a(w: int):\n    mask near\n")
    assert error.code == "E101" and "make it an argument" in error.hint
    assert codes("mask f(k) and k == 2", head="def f(x) = q - x < 3") == []


def test_errors_in_a_def_name_its_use() -> None:
    [error] = errors("def f(x) = x and true\nattention a():\n    mask f(q)\n")
    assert (error.code, error.line, error.column) == ("E104", 1, 12)
    assert error.notes == ("in `f`, used at <text>:3:10",)


def test_exponential_definitions_end() -> None:
    rows = ["def a0(x) = x"]
    rows += [f"def a{i}(x) = a{i - 1}(2 * x) + a{i - 1}(2 * x + 1)" for i in range(1, 40)]
    assert codes("score a39(q)", head="\n".join(rows)) == ["E005"]


def test_all_errors_at_once() -> None:
    text = "def f = nope\nattention a():\n    mask q\n    score wrong + k.y\n"
    assert [d.code for d in errors(text)] == ["E101", "E104", "E101", "E106"]


def test_which_attention() -> None:
    two = Source("<text>", "attention a():\n    mask true\nattention b2():\n    mask k <= q\n")
    assert analyse(two, "b2").name == "b2"
    assert [p.name for p in check_all(two)] == ["a", "b2"]
    for name in (None, "c"):
        with pytest.raises(ProgramError, match="E112"):
            analyse(two, name)
    for text in ("", "def f = 1\n", "# nothing\n"):
        with pytest.raises(ProgramError, match="E112"):
            check_all(Source("<text>", text))


@pytest.mark.parametrize(
    ("consts", "words"),
    [
        ({"wndow": 3}, "did you mean `window`"),
        ({"window": 2.0}, "must be an int"),
        ({"window": True}, "must be an int"),
        ({"window": 2**70}, "within"),
        ({"window": "x"}, "not 'x'"),
        ({"window": None}, "not NoneType"),
        ({"cap": 2.0}, "`cap` is not const"),
        ({}, "give window=<int>"),
    ],
)
def test_wrong_consts(consts: dict[str, object], words: str) -> None:
    with pytest.raises(ArgumentError, match=words):
        program("mask q - k < window", "window: const int, cap: float", "", **consts)  # type: ignore[arg-type]


# -- imports --------------------------------------------------------------------------------


def write(folder: Path, **files: str) -> Path:
    for name, text in files.items():
        (folder / f"{name}.attn").write_text(text)
    return folder / "main.attn"


def import_error(main: Path) -> str:
    with pytest.raises(ProgramError) as caught:
        check_all(load_source(main))
    [error] = caught.value.diagnostics
    assert error.code == "E108"
    return error.message + error.hint


BODY = "attention a():\n    mask near\n"


def test_imports(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "b.attn").write_text(
        'from "../c.attn" import width\ndef wide = q - k < width\n'
    )
    main = write(
        tmp_path,
        main='from "./deep/b.attn" import wide as near\n' + BODY,
        c="def width = 3\n",
    )
    assert len(check_all(load_source(main))) == 1


def test_wrong_imports(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    outside = tmp_path / "outside.attn"
    outside.write_text("def near = k <= q\n")
    folder = tmp_path / "in"
    (folder / "link.attn").symlink_to(outside)
    write(folder, masks="def nearby = true\nattention near():\n    mask true\n")
    write(
        folder, b='from "./c.attn" import x\ndef near = x\n', c='from "./b.attn" import near as x\n'
    )
    for path, words in [
        ("../outside.attn", "leaves the folder"),
        ("./link.attn", "leaves the folder"),
        (str(outside), "absolute"),
        ("C:/x.attn", "absolute"),
        ("./masks.txt", "does not end"),
        ("./mask.attn", "did you mean `masks.attn`"),
        ("./masks.attn", "is an attention"),
        ("./b.attn", "circle: b.attn -> c.attn -> b.attn"),
        ("./main.attn", "circle"),
    ]:
        assert words in import_error(write(folder, main=f'from "{path}" import near\n{BODY}')), path
    assert "no definition" in import_error(write(folder, main="from std import near\n" + BODY))
    assert "no library" in import_error(write(folder, main="from lib import near\n" + BODY))


def test_errors_of_an_imported_file_are_those_of_that_file(tmp_path: Path) -> None:
    main = write(tmp_path, main='from "./m.attn" import near\n' + BODY, m="def near = q <\n")
    with pytest.raises(ProgramError) as caught:
        check_all(load_source(main))
    assert [Path(d.file).name for d in caught.value.diagnostics] == ["m.attn"]


# -- nothing else escapes -------------------------------------------------------------------

WORDS = """( ) [ ] , : = == + - * ** / // % < <= and or not if else let mask score weights output
grid def q k b h d B D Nq out inf true 0 1 2.5 99999999999 x y t f softmax sink normalize dot query
exp min clamp q.x k.y int float bool const [B,n] [q] (k) attention from std import causal""".split()


def test_broken_programs_raise_only_program_errors() -> None:
    random_numbers = random.Random(0)
    text = Path("examples/swin.attn").read_text() + Path("examples/gpt_oss.attn").read_text()
    for _ in range(300):
        words = text.split(" ")
        for _ in range(random_numbers.randint(1, 4)):
            words[random_numbers.randrange(len(words))] = random_numbers.choice(WORDS)
        try:
            check_all(Source("<text>", " ".join(words)))
        except (ProgramError, ArgumentError):
            pass


def test_random_statements_raise_only_program_errors() -> None:
    random_numbers = random.Random(1)
    kinds = [
        "mask",
        "score",
        "let v =",
        "weights",
        "output",
        "grid x =",
        "weights softmax(sink = q) #",
    ]
    for _ in range(400):
        rows = [
            f"    {random_numbers.choice(kinds)} {expression(random_numbers, 4)}"
            for _ in range(random_numbers.randint(1, 4))
        ]
        head = f"def f(x, y) = {expression(random_numbers, 3)}\n"
        head += "attention a(t: float[B, n], w: int, p: bool):\n"
        try:
            check_all(Source("<text>", head + "\n".join(rows) + "\n"))
        except (ProgramError, ArgumentError):
            pass


def expression(numbers: random.Random, depth: int) -> str:
    if depth == 0 or numbers.random() < 0.2:
        leaves = "q k b h d score out w p t v 0 1 3 2.5 true inf Nq n query q.x x y f".split()
        return numbers.choice(leaves)
    a, b, c = (expression(numbers, depth - 1) for _ in range(3))
    operator = numbers.choice("+ - * / // % ** < <= == != and or".split())
    forms = [f"({a} {operator} {b})"] * 6
    forms += [f"-{a}", f"(not {a})", f"({a} if {b} else {c})", f"t[{a}, {b}]", f"f({a}, {b})"]
    forms += [
        f"min({a}, {b})",
        f"clamp({a}, {b}, {c})",
        f"exp({a})",
        f"int({a})",
        f"dot(query, t[{a}])",
    ]
    return numbers.choice(forms)
