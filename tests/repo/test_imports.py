"""Who may import whom (the contracts stand in pyproject.toml), and who may look at the environment."""

import ast
from pathlib import Path

import pytest
from importlinter.cli import lint_imports


def test_every_import_contract_is_kept(root, monkeypatch, capsys):
    monkeypatch.chdir(root)
    monkeypatch.syspath_prepend(str(root))
    outcome = lint_imports(config_filename="pyproject.toml", no_cache=True, no_logo=True)
    assert outcome == 0, capsys.readouterr().out


def test_an_import_that_no_contract_allows_is_noticed(tmp_path, monkeypatch, capsys):
    """The linter itself is switched on: one contract, broken on purpose."""
    (tmp_path / "first").mkdir()
    (tmp_path / "first" / "__init__.py").write_text("import json\n")
    contract = '[[tool.importlinter.contracts]]\nname = "x"\ntype = "forbidden"\nsource_modules = ["first"]\n'
    head = '[tool.importlinter]\nroot_packages = ["first"]\ninclude_external_packages = true\n'
    (tmp_path / "pyproject.toml").write_text(head + contract + 'forbidden_modules = ["json"]\n')
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert lint_imports(config_filename="pyproject.toml", no_cache=True, no_logo=True) == 1
    assert "first" in capsys.readouterr().out


def looks_at_the_environment(path: Path) -> bool:
    """Whether a module names os.environ or os.getenv."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute) and node.attr in ("environ", "environb", "getenv", "getenvb"):
            return True
        if isinstance(node, ast.ImportFrom) and node.module == "os":
            return any(alias.name in ("environ", "environb", "getenv", "getenvb") for alias in node.names)
    return False


def test_in_the_gateway_only_the_command_line_looks_at_the_environment_and_hands_it_to_the_settings(root):
    found = {str(path.relative_to(root)) for path in (root / "gateway").rglob("*.py") if looks_at_the_environment(path)}
    assert found == {"gateway/__main__.py"}


@pytest.mark.parametrize("package", ["gateway", "worker", "deploy"])
def test_importing_a_package_does_no_work(root, package):
    """Its __init__ imports, names and describes; nothing is called."""
    for node in ast.parse((root / package / "__init__.py").read_text()).body:
        assert isinstance(node, ast.Expr | ast.Import | ast.ImportFrom | ast.Assign | ast.ClassDef | ast.FunctionDef)
        assert not any(isinstance(part, ast.Call) for part in ast.walk(node) if isinstance(node, ast.Expr | ast.Assign))


def test_nothing_but_vllm_loads_the_plug_in_that_lives_in_its_server(root):
    for path in [*(root / "worker").rglob("*.py"), *(root / "deploy").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import | ast.ImportFrom) else []
            origin = node.module if isinstance(node, ast.ImportFrom) else None
            assert origin != "worker.endpoint" and "worker.endpoint" not in names, path
            assert not (origin == "worker" and "endpoint" in names), path
