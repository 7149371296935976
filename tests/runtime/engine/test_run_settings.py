from typing import get_type_hints

from autopart.runtime.engine.run_settings import RunKeywords, RunSettings


def test_the_keywords_of_run_plan_are_fields_of_the_settings():
    keywords, fields = get_type_hints(RunKeywords), get_type_hints(RunSettings)
    assert keywords.items() <= fields.items()
    assert fields.keys() - keywords.keys() == {"model", "count_bytes"}
