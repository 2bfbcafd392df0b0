"""The validator: every mistake of a config, with its path and the nearest valid name."""

import pytest
from omegaconf import OmegaConf

from utils.errors import UserError
from utils.validate import check_or_raise, num_targets, validate

HERE = "tests.utils.targets"


def problems(text):
    return validate(OmegaConf.create(text.replace("$", HERE).replace("@{", "${")))


def test_accepts_a_right_config_and_counts_its_targets():
    config = OmegaConf.create(
        {
            "model": {
                "_target_": f"{HERE}.Tagger",
                "backbone": {"_target_": f"{HERE}.Cnn", "channels": 8},
                "num_classes": 2,
            },
            "optimizer": {"_target_": f"{HERE}.Optimizer", "_partial_": True, "lr": 1, "fused": True},
            "steps": [{"_target_": f"{HERE}.Tagger.from_name", "name": "a"}, {"_target_": "builtins.dict", "x": 1}],
            "same_model": "${model}",
        }
    )
    assert validate(config) == []
    assert num_targets(config) == 5


def test_names_a_nested_unknown_argument_and_the_nearest_one():
    text = "model: {_target_: $.Tagger, num_classes: 2, backbone: {_target_: $.Cnn, channels: 8, dropuot: 0.5}}"
    assert problems(text) == [
        f"model.backbone.dropuot: unknown argument of {HERE}.Cnn (did you mean 'dropout'?)",
    ]


def test_reports_all_mistakes_together_in_order_of_their_paths():
    text = """
    z: {_target_: $.Cnn, chanels: 8}
    c: {_target_: $.Cnn}
    b: [{_target_: $.Tager}, {_target_: nowhere.At}, {_target_: $.NOT_CALLABLE}, {_target_: 3}]
    a: ???
    """
    assert problems(text) == [
        "a: a value is needed here (???)",
        f"b.0._target_: {HERE}.Tager: no such name (did you mean 'Tagger'?)",
        "b.1._target_: nowhere.At: no module 'nowhere'",
        f"b.2._target_: {HERE}.NOT_CALLABLE is not something that can be called",
        "b.3._target_: expected a dotted name, got 3",
        f"c.channels: missing, {HERE}.Cnn needs it",
        f"z.chanels: unknown argument of {HERE}.Cnn (did you mean 'channels'?)",
    ]


def test_a_misspelt_module_is_told_from_a_misspelt_class():
    assert problems("a: {_target_: torch.optm.AdamW}") == [
        "a._target_: torch.optm.AdamW: no such name (did you mean 'optim'?)",
    ]
    assert problems("a: {_target_: tests.utils.target.Cnn}") == [
        "a._target_: tests.utils.target.Cnn: no such name (did you mean 'targets'?)",
    ]


@pytest.mark.parametrize(
    ("field", "expected"),
    [
        ("channels: fast", "channels: expected a whole number, got 'fast'"),
        ("channels: 1.5", "channels: expected a whole number, got 1.5"),
        ("channels: true", "channels: expected a whole number, got true"),
        ("channels: null", "channels: expected a whole number, got null"),
        ("channels: 1, dropout: fast", "dropout: expected a number, got 'fast'"),
        ("channels: 1, pooling: sum", "pooling: expected 'mean' or 'max', got 'sum'"),
        ("channels: 1, name: 3", "name: expected a text or null, got 3"),
    ],
)
def test_plain_values_must_fit_simple_annotations(field, expected):
    assert problems(f"m: {{_target_: $.Cnn, {field}}}") == [f"m.{expected}"]


def test_values_of_torch_signatures_are_checked_too():
    assert problems("optimizer: {_target_: torch.optim.AdamW, _partial_: true, lr: fast}") == [
        "optimizer.lr: expected a number, got 'fast'"
    ]


def test_partials_may_lack_arguments_but_not_invent_them():
    assert problems("o: {_target_: torch.optim.AdamW, _partial_: true, weight_decai: 0.1}") == [
        "o.weight_decai: unknown argument of torch.optim.AdamW (did you mean 'weight_decay'?)"
    ]


def test_positional_arguments_are_counted():
    assert problems("a: {_target_: $.Cnn, _args_: [1, 0.1, mean, x, 5]}") == [
        f"a._args_: 5 arguments, {HERE}.Cnn takes at most 4"
    ]
    assert problems("a: {_target_: $.Cnn, _args_: [1], channels: 2}") == [
        f"a.channels: given twice to {HERE}.Cnn, in _args_ already"
    ]
    assert problems("a: {_target_: $.Cnn, _args_: [1]}") == []


def test_children_of_a_non_recursive_node_may_be_completed_later():
    assert problems("a: {_target_: builtins.dict, _recursive_: false, child: {_target_: $.Cnn}}") == []


def test_a_node_behind_a_pointer_is_reported_once_at_its_own_place():
    assert problems("a: @{c}\nb: ['@{c}']\nc: {_target_: $.Cnn, channels: 1, dropuot: 1}") == [
        f"c.dropuot: unknown argument of {HERE}.Cnn (did you mean 'dropout'?)"
    ]


def test_a_dangling_pointer_is_one_line():
    assert problems("a: {b: '@{c.d}'}") == ["a.b: Interpolation key 'c.d' not found"]


def test_check_or_raise_tells_everything_in_one_error():
    config = OmegaConf.create({"a": "???", "b": {"_target_": "nowhere.At"}})
    with pytest.raises(UserError) as caught:
        check_or_raise(config)
    assert str(caught.value).splitlines() == [
        "a: a value is needed here (???)",
        "b._target_: nowhere.At: no module 'nowhere'",
    ]
