"""The schema of what commands say to programs."""

import json

from jsonschema import Draft202012Validator

from blockstream.events import Disk, End, Warned, kinds, schema


def test_each_kind_is_there_once_and_said_by_one_name() -> None:
    names = [each.kind for each in kinds()]
    assert len(names) == len(set(names)) > 30
    assert len({each.__name__ for each in kinds()}) == len(names)


def test_the_whole_schema_takes_each_event_as_exactly_one_kind() -> None:
    whole = json.loads(json.dumps(schema()))
    Draft202012Validator.check_schema(whole)
    validator = Draft202012Validator(whole)
    end = End(1, 0, [], None, None, None, [], None, None, None, None, 0.1)
    for event in (Warned("x"), Disk("a", "dir:/b/a"), end):
        validator.validate(json.loads(json.dumps(event.values())))
    assert not validator.is_valid({"event": "warning"})
    assert not validator.is_valid({"event": "warning", "message": 7})
