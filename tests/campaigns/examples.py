"""Good files of others, for readers to be tried on with changes."""

PAIR = '{"source": "Drei Äpfel", "target": "Three apples", "source_language": "%s", "id": %d, "kind": "%s"}\n'
PAIRS = "".join(PAIR % (code, number, "question") for number in range(3) for code in ("de", "fr"))
PROBLEMS = "".join(
    f'{{"lang": "{code}", "query": "Tom has {n} eggs", "response": "It is {n}", "id": {n}}}\n'
    for n in (1, 2) for code in ("en", "German")
)  # fmt: skip
PUBLISHED = "".join(
    f'{{"prompt": "Write a response in {name}. Please answer in {name}.\\n\\n### Instruction:\\nTom has 3 eggs\\n\\n'
    '### Response:", "chosen": "It is 3"}\n' for name in ("English", "German")
)  # fmt: skip
SAMPLE = (
    '{"doc_id": 0, "doc": {"question": "Wie viele?", "answer_number": 18}, "target": "18", "arguments": {"gen_args_0": '
    '{"arg_0": "Frage", "arg_1": {"do_sample": false, "until": ["Frage:"], "max_gen_toks": 16}}}, "resps": [["18"]], '
    '"filtered_resps": ["18"], "filter": "flexible-extract", "metrics": ["exact_match"], "exact_match": 1.0, '
    '"doc_hash": "d", "prompt_hash": "p", "target_hash": "t"}'
)
RESULTS = (
    '{"config": {"model_dtype": "torch.bfloat16"}, "model_name": "m", "chat_template_sha": null, "n-shot": '
    '{"mgsm_direct_de": 0}, "versions": {"mgsm_direct_de": 4.0}, "lm_eval_version": "0.4.13"}'
)
CONFIG = (
    "model:\n  name: a\ntrain:\n  learning_rate: 2e-5\n  max_steps: 3\ndata: {path: 'corpus:', languages: [de, no]}\n"
)
TEMPLATE = (
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}</s>{% endfor %}"
    "{% if add_generation_prompt %}A{% endif %}"
)
