import json

from lotts.doctor import diagnose, table


def test_the_findings_are_plain_data_and_name_every_op():
    found = diagnose()
    assert json.loads(json.dumps(found)) == found
    assert {"inject_noise", "contrast_attention", "propagate_attention"} <= set(found["kernels"])
    for offers in found["kernels"].values():
        assert offers["default"] in offers["available"]
    assert found["devices"][-1]["kind"] == "cpu"
    assert found["packages"]["torch"]
    assert set(found["models"]) == {"shapes-sd", "shapes-sdxl", "shapes-flux"}
    assert "shapes" in found["verifiers"]


def test_the_table_says_what_is_used_and_what_is_missing():
    found = diagnose()
    found["packages"]["triton"] = None
    found["models"] = {"shapes-sd": False}
    text = table(found)
    assert "portable (used)" in text or "triton (used)" in text
    assert "not installed" in text
    assert "python -m lotts.shapes.train sd" in text
    assert not any(line != line.rstrip() for line in text.splitlines())
