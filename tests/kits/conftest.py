"""Kits of every kind, and a compiler for Kotlin."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from kit_bundles import ANDROID, JARS, KITS, NEEDED, STUBS, TARGETS, make_bundle, sources_of

from pocketphi.compiler.integrate import integrate


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bundle(tmp_path_factory.mktemp("kits") / "bundle", TARGETS)


@pytest.fixture(scope="session")
def kits(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Every kit of that bundle: `android-genai` → its folder."""
    root = tmp_path_factory.mktemp("kits")
    found = {}
    for kit in KITS:
        name = f"{kit.platform}-{kit.runtime}"
        integrate(bundle, kit.platform, root / name, kit.runtime)
        found[name] = root / name
    return found


SHORT = "-Xmx1G -Xms256M -XX:+UseSerialGC -XX:TieredStopAtLevel=1"
"""Java for a minute: to compile itself well costs more than that gives."""

CLASS_PATH = ":".join(str(JARS / jar) for jar in NEEDED)


@pytest.fixture(scope="session")
def kotlin() -> Callable[..., Path]:
    """Compile folders and files of Kotlin against Android's own interfaces: kotlin(out, sources) → out."""
    missing = [tool for tool in ("kotlinc", "java", "javac") if not shutil.which(tool)]
    missing += [str(JARS / jar) for jar in NEEDED if not (JARS / jar).is_file()]
    if missing:
        packages = (
            "kotlin junit4 libandroid-json-java libkotlinx-coroutines-java libkotlinx-atomicfu-java libasm-java "
            "libxerial-sqlite-jdbc-java default-jdk-headless"
        )
        pytest.skip(f"no {', '.join(missing)}: apt-get install {packages}")
    if not ANDROID.is_file():
        pytest.skip(f"no {ANDROID}: `make build/android` gets it")

    def compile_(out: Path, *sources: Path) -> Path:
        # android.jar has an older JUnit too, and no code of org.json: it comes last
        command = ["kotlinc", "-cp", f"{CLASS_PATH}:{ANDROID}", "-d", str(out), *map(str, sources)]
        done = subprocess.run(
            command, env=os.environ | {"JAVA_OPTS": SHORT}, capture_output=True, text=True, check=False
        )
        assert (done.returncode, "error:" in done.stderr) == (0, False), done.stderr
        # the stand-ins have parameters that they do not need
        warnings = re.findall(r"^(?!.*\bstubs/).*\.kt:.*warning:.*$", done.stderr, re.M)
        assert warnings == []
        return out

    return compile_


@pytest.fixture(scope="session")
def tvm_classes(kits: dict[str, Path], kotlin: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The JNI kit with its tests and ours, compiled."""
    kit, out = kits["android-tvm"], tmp_path_factory.mktemp("classes") / "tvm"
    own = [Path(__file__).with_name(name) for name in ("ChatTest.kt", "NativeTest.kt", "Phone.kt", "RealModelTest.kt")]
    return kotlin(out, *sources_of(kit), *own, STUBS / "djl")


@pytest.fixture(scope="session")
def run_junit(kotlin: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[..., tuple[int, str]]:
    """Run a test class in Java: run_junit(classes, resources, test, options...) → (exit code, output)."""
    phone = tmp_path_factory.mktemp("android") / "android.jar"
    packages = ("android/app/", "android/content/", "android/os/", "android/test/mock/")
    command = ["java", *SHORT.split(), "-cp", str(JARS / "asm.jar"), str(Path(__file__).with_name("Mockable.java"))]
    subprocess.run([*command, str(ANDROID), str(phone), *packages], check=True)

    def junit(classes: Path, resources: Path, test: str, *options: str) -> tuple[int, str]:
        path = f"{classes}:{resources}:{CLASS_PATH}:{phone}"
        command = ["java", *options, "-cp", path, "org.junit.runner.JUnitCore", test]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        return done.returncode, done.stdout + done.stderr

    return junit
