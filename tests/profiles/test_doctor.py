"""The doctor's judgement: what blocks, what only costs, and that every finding names a command."""

import dataclasses

import pytest

from edgewam.profiles import doctor
from edgewam.profiles.extras import Requirement
from edgewam.profiles.known_bad import TABLE, known_bad
from edgewam.profiles.machine import Machine, instruction_sets, read_host, read_nvidia
from edgewam.profiles.probe import Answer
from edgewam.profiles.versions import satisfies

MACHINE = Machine("cpu", 2, 2000.0, "performance", 16.0, 0.1, "Linux")
HOST = dataclasses.replace(
    read_host(), memory_available_gb=8.0, disk_free_gb=50.0, shared_memory_gb=8.0, container=None, rt_runtime=0.95,
    nvidia_models=(), nvidia_module=None, instruction_sets=("avx2",),
)  # fmt: skip
FINE, REFUSED = Answer(True, {"scheduler": "SCHED_FIFO 60", "memory": "locked"}), Answer(False, reason="broken")


def host(**changes):
    return doctor.judge_host(MACHINE, dataclasses.replace(HOST, **changes), lambda package: True)


def only(problems):
    assert len(problems) == 1
    return problems[0]


def test_a_good_machine_has_no_problems():
    assert host() == [] and doctor.judge_python() == []
    assert doctor.judge_real_time(FINE, HOST) == []
    assert doctor.judge_bundle("b", FINE) == doctor.judge_records(FINE) == []


def test_an_old_python_blocks():
    assert only(doctor.judge_python((3, 10, 2))).blocks


def test_a_missing_base_package_blocks_and_a_missing_extra_does_not():
    base = Requirement("numpy", ">=2.1", "", None)
    assert only(doctor.judge_packages([base, Requirement("triton", ">=3", "kernels", None)])).blocks


def test_a_version_outside_of_its_range_is_named_with_the_command():
    problem = only(doctor.judge_packages([Requirement("mujoco", "==3.8.1", "sim", "4.0.0")]))
    assert problem.what == "mujoco 4.0.0" and problem.mend == "pip install 'mujoco==3.8.1'" and not problem.blocks


def test_a_bundle_that_does_not_run_blocks_with_the_command_of_its_message():
    reason = "Backend 'onnxruntime' cannot run here: not installed; install it with: pip install 'edgewam[onnx]'."
    problem = only(doctor.judge_bundle("b", Answer(False, reason=reason)))
    assert problem.blocks and problem.mend == "pip install 'edgewam[onnx]'"
    assert only(doctor.judge_bundle("b", Answer(False, reason="odd"))).mend == "edgewam inspect b"
    assert "--limit" in only(doctor.judge_bundle("b", Answer(False, reason="slow", timed_out=True))).mend


def test_drawing_is_asked_for_only_where_the_simulator_is():
    broken = {"egl": REFUSED, "osmesa": REFUSED}
    assert doctor.judge_rendering(broken, has_simulator=False, has_models=False) == []
    assert doctor.judge_rendering({"egl": FINE, "osmesa": REFUSED}, True, True) == []
    problem = only(doctor.judge_rendering(broken, True, True))
    assert problem.blocks and problem.mend.startswith("apt-get install") and "egl: broken" in problem.why
    assert "gym-aloha" in only(doctor.judge_rendering({"egl": FINE}, True, False)).mend


@pytest.mark.parametrize(("container", "word"), [(None, "limits.d"), ("docker", "--cap-add SYS_NICE")])
def test_missing_real_time_permissions_cost_and_the_command_fits_the_place(container, word):
    answer = Answer(True, {"scheduler": "SCHED_OTHER (refused)", "memory": "not locked (refused)"})
    problem = only(doctor.judge_real_time(answer, dataclasses.replace(HOST, container=container)))
    assert word in problem.mend and "SCHED_OTHER" in problem.why and "not locked" in problem.why and not problem.blocks


@pytest.mark.parametrize(
    "changes", [
        {"memory_available_gb": 0.5}, {"disk_free_gb": 0.1}, {"shared_memory_gb": 0.064}, {"instruction_sets": ("f16c",)},
        {"nvidia_models": ("NVIDIA Thor",), "nvidia_module": "580.00"},
    ],
)  # fmt: skip
def test_every_shortage_is_one_problem(changes):
    assert not only(host(**changes)).blocks


@pytest.mark.parametrize(
    ("module", "mend"), [("580.00", "install -y nvidia-utils-580"), (None, "apt-cache search"), ("?", "apt-cache")]
)
def test_a_gpu_out_of_reach_comes_with_a_command_that_can_be_typed(module, mend):
    assert mend in only(host(nvidia_models=("NVIDIA Thor",), nvidia_module=module)).mend


def test_a_saving_governor_is_named():
    slow = dataclasses.replace(MACHINE, governor="powersave")
    assert "cpupower" in only(doctor.judge_host(slow, HOST, lambda package: True)).mend


def libraries(**installed):
    how = {"tensorrt": "It is not on PyPI: pip install --extra-index-url https://pypi.nvidia.com 'tensorrt-cu13>=10.16,<12'."}
    names = ("tensorrt_rtx", "tensorrt", "cuda-bindings")
    return {
        name: {"installed": installed.get(name.replace("-", "_"), True), "how": how.get(name, f"pip install '{name}'")}
        for name in names
    }


def test_an_engine_library_is_missed_only_where_the_gpu_needs_it():
    assert doctor.judge_engines("", "", libraries(tensorrt=False)) == []  # no GPU
    assert doctor.judge_engines("Odd card", "", libraries(tensorrt=False)) == []  # nobody knows what serves it
    assert doctor.judge_engines("NVIDIA GeForce RTX 5090", "tensorrt_rtx", libraries(tensorrt=False)) == []
    problem = only(doctor.judge_engines("NVIDIA Thor", "tensorrt", libraries(tensorrt=False)))
    assert problem.what == "tensorrt is not installed" and not problem.blocks and "not on PyPI" in problem.why
    assert problem.mend == "pip install --extra-index-url https://pypi.nvidia.com 'tensorrt-cu13>=10.16,<12'"
    assert (
        only(doctor.judge_engines("NVIDIA Thor", "tensorrt", libraries(cuda_bindings=False))).what
        == "cuda-bindings is not installed"
    )


def test_known_bad_rows_match_only_their_versions_and_gpus():
    def bad(sm=None, **packages):
        named = {n if n == "huggingface_hub" else n.replace("_", "-"): version for n, version in packages.items()}
        return [row.package for row, _ in known_bad(sm, named.get)]

    assert bad() == []
    assert bad("sm_120", tensorrt="10.12.0") == ["tensorrt"] and bad("sm_90", tensorrt="10.12.0") == []
    assert bad("sm_110", tensorrt="10.13.3.9") == ["tensorrt"] and bad("sm_110", tensorrt="10.16.1") == []
    assert bad(triton="3.6.0", numpy="2.4.6") == ["triton"] and bad(triton="3.6.0", numpy="2.3.0") == []
    assert bad(onnxruntime="1.31.1", onnxruntime_gpu="1.24.2") == ["onnxruntime-gpu"] and bad(onnxruntime_gpu="1.24") == []
    assert bad(nvidia_modelopt="0.47.0", requests="2") == ["nvidia-modelopt"]
    assert bad(nvidia_modelopt="0.47.0", requests="2", huggingface_hub="2") == []


def test_every_known_bad_row_has_a_reason_a_source_and_a_command():
    for row in TABLE:
        assert row.what and row.source and row.mend
        satisfies("1.0", row.versions)  # raises on one it cannot read
        problem = only(doctor.judge_known_bad([(row, "1.0")]))
        assert row.source in problem.why and not problem.blocks


def test_instruction_sets_are_read_on_x86_and_arm():
    assert instruction_sets("processor : 0\nflags\t\t: fpu avx2 avx512_vnni odd\n") == ("avx2", "avx512_vnni")
    assert instruction_sets("Features\t: fp asimd asimddp\n") == ("asimd", "asimddp")
    assert instruction_sets("nothing") == ()


def test_the_driver_is_read_from_the_kernel_without_its_library(tmp_path):
    gpu = tmp_path / "gpus/0000:01:00.0"
    gpu.mkdir(parents=True)
    text = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release Build  (dvs-builder)\n"
    (tmp_path / "version").write_text(text)
    (gpu / "information").write_text("Model: \t\t NVIDIA GeForce RTX 5090\nIRQ:   \t\t 16\n")
    assert read_nvidia(str(tmp_path)) == ("580.65.06", ("NVIDIA GeForce RTX 5090",))
    assert read_nvidia(str(tmp_path / "absent")) == (None, ())
