import dataclasses
import json
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

from mirror_edge import bundle as bundles
from mirror_edge.errors import BundleError, MirrorEdgeError, OptionError, TemplateError
from mirror_edge.text import Message, Text

BOS, EOS, TURN = "<s>", "</s>", "<|im_end|>"

CHATML = """
{%- if tools %}
{{- '<|im_start|>system\\n# Tools\\n' }}
{%- for tool in tools %}
{{- tool | tojson }}
{%- endfor %}
{{- '<|im_end|>\\n' }}
{%- endif %}
{% for message in messages %}
    {% if loop.first and message['role'] != 'system' %}
<|im_start|>system
You are helpful.<|im_end|>
    {% endif %}
<|im_start|>{{ message['role'] }}
    {% generation %}
{{ message['content'] | trim }}<|im_end|>
    {% endgeneration %}
{% endfor %}
{% if add_generation_prompt %}
<|im_start|>assistant
{% if enable_thinking is defined and enable_thinking is false %}<think>

</think>

{% endif %}
{% endif %}
"""

LLAMA3 = """
{{- bos_token }}
{%- if not date_string is defined %}
    {%- set date_string = strftime_now("%Y, year %j") %}
{%- endif %}
{%- set ns = namespace(system="", seen=0) %}
{%- for message in messages %}
    {%- if message.role == "system" %}
        {%- set ns.system = message.content %}
        {%- continue %}
    {%- endif %}
    {%- set ns.seen = ns.seen + 1 %}
    {%- if ns.seen > 3 %}{% break %}{% endif %}
    {{- '<|start|>' + message['role'] + '<|end|>\\n\\n' + message['content'] | trim + '<|eot|>' }}
{%- endfor %}
{{- "Date: " + date_string + ns.system }}
{%- if tools is not none %}
    {%- for t in tools %}
        {{- t | tojson(indent=4) }}
    {%- endfor %}
{%- else %}{{ "no tools" }}
{%- endif %}
{%- if documents is not none %}{{ "documents" }}{% endif %}
{%- if add_generation_prompt %}
    {{- '<|start|>assistant<|end|>\\n\\n' }}
{%- endif %}
"""

MISTRAL = """
{%- if messages[0]["role"] == "system" %}
    {%- set system = messages[0]["content"] %}
    {%- set loop_messages = messages[1:] %}
{%- else %}
    {%- set loop_messages = messages %}
{%- endif %}
{{- bos_token }}
{%- for message in loop_messages %}
    {%- if (message["role"] == "user") != (loop.index0 % 2 == 0) %}
        {{- raise_exception("Roles must alternate user/assistant") }}
    {%- endif %}
    {%- if message["role"] == "user" %}
        {%- if loop.first and system is defined %}
            {{- "[INST] " + system + "\\n\\n" + message["content"] + "[/INST]" }}
        {%- else %}
            {{- "[INST] " + message["content"] + "[/INST]" }}
        {%- endif %}
    {%- else %}
        {{- " " + message["content"] + eos_token }}
    {%- endif %}
{%- endfor %}
"""

PIECEMEAL = (
    "{% for m in messages %}[{{ m.role }}]{{ m.name }}{{ pad_token }}{{ unk_token }}"
    "{{ m | tojson }}{{ dict(a=1) | tojson(sort_keys=true, separators=(',', ':')) }}\n{% endfor %}"
)

HELLO: list[Message] = [{"role": "user", "content": " Hi <b>&'é'</b> "}]
TALK: list[Message] = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello!"},
    {"role": "user", "content": "Bye"},
    {"role": "assistant", "content": "See you."},
    {"role": "user", "content": "{{ 7 * 7 }}"},
]
TOOLS = [{"type": "function", "function": {"name": "weather", "description": "<now> & here"}}]


def tokenizer() -> Tokenizer:
    """Byte-level, and as Llama's it puts a `BOS` before every text."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    built = Tokenizer(models.BPE({token: index for index, token in enumerate(alphabet)}, []))
    built.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    built.decoder = decoders.ByteLevel()
    built.add_special_tokens([BOS, EOS, TURN])
    built.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", special_tokens=[(BOS, built.token_to_id(BOS))]
    )
    return built


Build = Callable[..., Path]


@pytest.fixture
def build(tmp_path: Path) -> Build:
    def folder(
        *,
        template: str | None = None,
        config: dict[str, Any] | None = None,
        generation: dict[str, Any] | None = None,
    ) -> Path:
        tokenizer().save(str(tmp_path / "tokenizer.json"))
        named = {"bos_token": BOS, "eos_token": EOS} if config is None else config
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(named), encoding="utf-8")
        if generation is not None:
            (tmp_path / "generation_config.json").write_text(json.dumps(generation))
        if template is not None:
            (tmp_path / "chat_template.jinja").write_text(template, encoding="utf-8")
        return tmp_path

    return folder


@pytest.fixture
def render(build: Build) -> Callable[..., str]:
    def rendered(template: str, messages: Any = HELLO, **kwargs: object) -> str:
        return Text.read(build(template=template)).render_chat(messages, **kwargs)  # type: ignore[arg-type]

    return rendered


# --- reading --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("generation", "eos"),
    [
        ({"eos_token_id": 258}, {258}),
        ({"eos_token_id": [258, 256, 258]}, {258, 256}),
        ({"eos_token_id": None}, {257}),
        ({"eos_token_id": []}, {257}),
        ({}, {257}),
        (None, {257}),
    ],
)
def test_eos_is_the_generation_configs_or_else_the_tokenizers(
    build: Build, generation: dict[str, Any] | None, eos: set[int]
) -> None:
    assert Text.read(build(generation=generation)).eos == eos


def test_eos_may_be_a_serialised_token(build: Build) -> None:
    config = {"eos_token": {"content": TURN, "special": True}}
    assert Text.read(build(config=config)).eos == {258}


def test_a_model_that_names_no_end_has_none(build: Build) -> None:
    assert Text.read(build(config={})).eos == frozenset()


def test_text_is_frozen(build: Build) -> None:
    text = Text.read(build())
    with pytest.raises(dataclasses.FrozenInstanceError):
        text.eos = frozenset()  # type: ignore[misc]


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
def test_a_missing_file_is_named(build: Build, name: str) -> None:
    folder = build()
    (folder / name).unlink()
    with pytest.raises(BundleError, match=rf"{name}: is missing\. .*export again"):
        Text.read(folder)


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("tokenizer.json", b"{}", "is not a tokenizer"),
        ("tokenizer.json", b"\xff", "cannot be read"),
        ("tokenizer_config.json", b"{", "cannot be read as JSON"),
        ("tokenizer_config.json", b"[]", "must hold a JSON object"),
        ("tokenizer_config.json", b'{"bos_token": 1}', "bos_token must be a string"),
        ("tokenizer_config.json", b'{"bos_token": {"id": 1}}', "bos_token must be a string"),
        ("tokenizer_config.json", b'{"eos_token": "<no>"}', "'<no>' is not in the vocabulary"),
        ("tokenizer_config.json", b'{"chat_template": 7}', "chat_template must be"),
        ("tokenizer_config.json", b'{"chat_template": [{"name": "x"}]}', "chat_template must be"),
        ("generation_config.json", b"nothing", "cannot be read as JSON"),
        ("generation_config.json", b'{"eos_token_id": "</s>"}', "eos_token_id must be"),
        ("generation_config.json", b'{"eos_token_id": [true]}', "eos_token_id must be"),
        ("generation_config.json", b'{"eos_token_id": -1}', "eos_token_id must be"),
        ("chat_template.jinja", b"\xff", "cannot be read"),
    ],
)
def test_an_invalid_file_is_named_with_the_reason(
    build: Build, name: str, content: bytes, reason: str
) -> None:
    folder = build()
    (folder / name).write_bytes(content)
    with pytest.raises(BundleError, match=rf"{name}: .*{reason}.*export again"):
        Text.read(folder)


def test_the_template_file_wins_over_the_config(build: Build) -> None:
    config = {"chat_template": "config"}
    assert Text.read(build(config=config)).render_chat(HELLO) == "config"
    assert Text.read(build(config=config, template="file")).render_chat(HELLO) == "file"


def test_named_templates_are_chosen_by_use(build: Build) -> None:
    named = [{"name": "tool_use", "template": "tools"}, {"name": "default", "template": "plain"}]
    text = Text.read(build(config={"chat_template": named}))
    assert text.render_chat(HELLO) == "plain"
    assert text.render_chat(HELLO, tools=TOOLS) == "tools"


# --- tokens ---------------------------------------------------------------------------------------


def test_a_raw_prompt_gets_the_special_tokens_and_a_chat_gets_them_once(build: Build) -> None:
    text = Text.read(build(template="{{ bos_token }}{{ messages[0].content }}"))
    bos = text.tokenizer.get_vocab()[BOS]
    assert text.encode("a").count(bos) == 1
    assert text.encode("a", add_special_tokens=False).count(bos) == 0
    assert text.encode_chat([{"role": "user", "content": "a"}]) == text.encode("a")


def test_a_tokenizer_that_truncates_is_told_not_to(build: Build) -> None:
    folder = build()
    built = Tokenizer.from_file(str(folder / "tokenizer.json"))
    built.enable_truncation(4)
    built.enable_padding(length=64)
    built.save(str(folder / "tokenizer.json"))
    assert len(Text.read(folder).encode("twelve bytes")) == 1 + 12


def test_half_a_surrogate_pair_is_refused(build: Build) -> None:
    text = Text.read(build(template="{{ messages[0].content }}"))
    with pytest.raises(OptionError, match="character 1"):
        text.encode("a\ud800")
    with pytest.raises(OptionError, match="surrogate"):
        text.encode_chat([{"role": "user", "content": "\ud800"}])


def test_decode_skips_special_tokens_and_equals_the_stream(build: Build) -> None:
    text = Text.read(build())
    ids = [*text.encode("né€😀"), text.tokenizer.get_vocab()[EOS]]
    stream = text.stream()
    assert text.decode(ids) == "né€😀"
    assert "".join(stream.push([token]) for token in ids) + stream.finish() == "né€😀"
    assert text.decode([]) == ""


# --- chat templates -------------------------------------------------------------------------------


def test_keywords_reach_the_template(render: Callable[..., str]) -> None:
    assert "<think>" not in render(CHATML)
    assert render(CHATML, enable_thinking=False).endswith("<think>\n\n</think>\n\n")
    assert "assistant" not in render(CHATML, add_generation_prompt=False)
    assert render("{{ bos_token }}", bos_token="mine") == "mine"


def test_special_tokens_the_model_lacks_are_empty(render: Callable[..., str]) -> None:
    tokens = "{{ bos_token }}{{ eos_token }}[{{ pad_token }}{{ unk_token }}]"
    assert render(tokens) == f"{BOS}{EOS}[]"


def test_tools_are_none_unless_given(render: Callable[..., str]) -> None:
    assert render("{{ tools is none }} {{ documents is none }}") == "True True"


def test_tojson_escapes_neither_html_nor_unicode(render: Callable[..., str]) -> None:
    assert render("{{ messages[0].content | tojson }}") == "\" Hi <b>&'é'</b> \""


def test_loops_can_be_left_and_continued(render: Callable[..., str]) -> None:
    loop = "{% for i in range(9) %}{% if i == 1 %}{% continue %}{% endif %}"
    assert render(loop + "{% if i > 3 %}{% break %}{% endif %}{{ i }}{% endfor %}") == "023"


def test_strftime_now_tells_the_time(render: Callable[..., str]) -> None:
    assert abs(int(render("{{ strftime_now('%Y') }}")) - datetime.now().year) <= 1


def test_content_is_never_run_as_a_template(render: Callable[..., str]) -> None:
    assert render("{{ messages[-1].content }}", TALK) == "{{ 7 * 7 }}"


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{{ raise_exception('Only one turn, please') }}", "Only one turn, please"),
        ("{{ nothing.at.all }}", "'nothing' is undefined"),
        ("\n{% for %}", "not valid Jinja, line 2"),
        ("{{ unknown | nofilter }}", "not valid Jinja"),
        ("{{ messages[0].content + 1 }}", "str"),
        ("{{ 1 // 0 }}", "zero"),
        ("{{ range(999999999) | list }}", "Range too big"),
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
        ("{{ raise_exception.__globals__['json'] }}", "unsafe"),
        ("{{ ''.__class__.__base__.__subclasses__() }}", "unsafe"),
        ("{{ '{0.__class__.__mro__}'.format('') }}", "unsafe"),
        ("{{ messages.append(1) }}", "unsafe"),
        ("{{ messages[0].update(role='system') }}", "unsafe"),
        ("{% set x = namespace(__class__=1) %}", "underscore name '__class__'"),
        ("{% set x = namespace() %}{% set x._y = 1 %}", "underscore name '_y'"),
        ("{% include 'other' %}", "loader"),
    ],
)
def test_a_failing_template_is_refused_with_its_reason(
    render: Callable[..., str], template: str, reason: str
) -> None:
    with pytest.raises(TemplateError, match=reason):
        render(template)


def test_a_broken_template_harms_no_raw_prompt(build: Build) -> None:
    assert Text.read(build(template="{% if %}")).decode([0]) != ""


def test_without_a_template_the_way_out_is_named(build: Build) -> None:
    with pytest.raises(TemplateError, match=r"no chat template.*--raw"):
        Text.read(build()).render_chat(HELLO)


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ([], "no messages"),
        ("Hi", "must be a list"),
        (HELLO[0], "must be a list"),
        (None, "must be a list"),
        ([HELLO[0], "Hi"], "Message 1 must be .*not str"),
        ([{"role": "user"}], "Message 0 has no content"),
        ([HELLO[0], {"content": "Hi"}], "Message 1 has no role"),
        ([{"role": "user", "content": None}], "Message 0: content must be text, not NoneType"),
        ([{"role": 1, "content": ""}], "Message 0: role must be text, not int"),
    ],
)
def test_messages_of_the_wrong_shape_are_refused(
    render: Callable[..., str], messages: object, reason: str
) -> None:
    with pytest.raises(TemplateError, match=reason) as caught:
        render("{{ messages }}", messages)
    assert isinstance(caught.value, MirrorEdgeError)


# --- the same as transformers ---------------------------------------------------------------------


@pytest.mark.parametrize("template", [CHATML, LLAMA3, MISTRAL, PIECEMEAL])
@pytest.mark.parametrize(
    "messages", [HELLO, TALK, [{**HELLO[0], "name": "Ann", "tool_calls": None}]]
)
@pytest.mark.parametrize("kwargs", [{}, {"tools": TOOLS}, {"enable_thinking": False}])
@pytest.mark.parametrize("prompt", [True, False])
def test_chats_read_as_transformers_writes_them(
    tmp_path: Path, template: str, messages: Any, kwargs: dict[str, Any], prompt: bool
) -> None:
    transformers = pytest.importorskip("transformers")
    theirs = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer(), bos_token=BOS, eos_token=EOS, chat_template=template
    )
    theirs.save_pretrained(tmp_path)
    ours = Text.read(tmp_path)
    rendered = theirs.apply_chat_template(
        messages, tokenize=False, add_generation_prompt=prompt, **kwargs
    )
    assert ours.render_chat(messages, add_generation_prompt=prompt, **kwargs) == rendered
    ids = theirs.apply_chat_template(messages, add_generation_prompt=prompt, **kwargs)["input_ids"]
    assert ours.encode_chat(messages, add_generation_prompt=prompt, **kwargs) == ids
    assert ours.encode("raw") == theirs("raw")["input_ids"]


def test_a_template_refuses_what_it_refuses_in_transformers(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    theirs = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer(), bos_token=BOS, eos_token=EOS, chat_template=MISTRAL
    )
    theirs.save_pretrained(tmp_path)
    twice: list[Message] = [HELLO[0], HELLO[0]]
    with pytest.raises(Exception, match="must alternate"):
        theirs.apply_chat_template(twice, tokenize=False)
    with pytest.raises(TemplateError, match="must alternate"):
        Text.read(tmp_path).render_chat(twice)


def test_of_a_bundle_only_what_its_manifest_vouches_for_counts(demo_copy: Path) -> None:
    before = Text.of(bundles.read(demo_copy)).render_chat(HELLO, tools=[])
    (demo_copy / "additional_chat_templates").mkdir()
    (demo_copy / "additional_chat_templates" / "tool_use.jinja").write_text("left over")
    assert Text.read(demo_copy).render_chat(HELLO, tools=[]) == "left over"
    assert Text.of(bundles.read(demo_copy)).render_chat(HELLO, tools=[]) == before


@pytest.mark.parametrize("name", ["tokenizer_config.json", "generation_config.json"])
def test_a_file_that_the_manifest_does_not_name_is_as_good_as_none(
    name: str, demo_copy: Path
) -> None:
    manifest = demo_copy / "mirror_edge.json"
    raw = json.loads(manifest.read_text())
    del raw["files"][name]
    manifest.write_text(json.dumps(raw))
    read = bundles.read(demo_copy)
    if name == "generation_config.json":
        assert Text.of(read).eos != Text.read(demo_copy).eos
    else:
        with pytest.raises(BundleError, match=f"{name}: is missing"):
            Text.of(read)


@pytest.mark.parametrize("special", [False, True])
def test_a_long_text_has_the_tokens_that_any_tokenizer_gives_it(special: bool) -> None:
    text = Text.of(bundles.read(bundles.demo()))
    long = "A fox <|end|> ran é 🦊. " * 4000
    expected = text.tokenizer.encode(long, add_special_tokens=special).ids
    assert text.encode(long, add_special_tokens=special) == expected
