"""The form of a connection, in both of Airflow's styles."""

import sys
from types import ModuleType
from typing import NamedTuple

from airflow.api_fastapi.core_api.services.ui.connections import HookMetaService
from airflow.sdk.providers_manager_runtime import ProvidersManagerTaskRuntime

from vlmflow.airflow import get_provider_info
from vlmflow.airflow.hooks.vlmflow import VLMFlowHook

FIELDS = ("endpoint_url", "mlflow_uri", "image", "python")


def test_the_api_server_shows_it():
    [form] = [f for f in HookMetaService.hook_meta_data() if f.connection_type == "vlmflow"]
    assert form.hook_class_name == "vlmflow.airflow.hooks.vlmflow.VLMFlowHook"
    assert tuple(form.extra_fields) == FIELDS
    endpoint = form.extra_fields["endpoint_url"]
    assert "AWS" in endpoint["description"]
    assert endpoint["schema"]["title"] == "S3 endpoint"
    assert endpoint["schema"]["type"] == ["string", "null"]
    assert form.standard_fields.password.title == "MLflow password"
    assert form.standard_fields.port.hidden


def test_the_provider_and_the_hook_say_the_same():
    [told] = get_provider_info()["connection-types"]
    behaviour = VLMFlowHook.get_ui_field_behaviour()
    assert told["ui-field-behaviour"] == {
        "hidden-fields": behaviour["hidden_fields"],
        "relabeling": behaviour["relabeling"],
        "placeholders": behaviour["placeholders"],
    }
    assert told["connection-type"] == VLMFlowHook.conn_type
    assert told["hook-name"] == VLMFlowHook.hook_name


class Field(NamedTuple):
    """What a field of WTForms is made of."""

    label: str
    description: str
    widget: object
    validators: list


def test_an_airflow_that_asks_the_hook_gets_the_same_fields(monkeypatch):
    # WTForms is in an Airflow that asks the hook, and in no other.
    for name, attributes in (
        ("wtforms", {"StringField": Field}),
        ("wtforms.validators", {"Optional": lambda: "optional"}),
        ("flask_appbuilder", {}),
        ("flask_appbuilder.fieldwidgets", {"BS3TextFieldWidget": lambda: "text"}),
    ):
        module = ModuleType(name)
        vars(module).update(attributes)
        monkeypatch.setitem(sys.modules, name, module)
    [told] = get_provider_info()["connection-types"]
    widgets = VLMFlowHook.get_connection_form_widgets()
    assert {name: (field.label, field.description) for name, field in widgets.items()} == {
        name: (field["label"], field["description"]) for name, field in told["conn-fields"].items()
    }


def test_the_hook_and_the_decorator_are_found():
    manager = ProvidersManagerTaskRuntime()
    hook = manager.hooks["vlmflow"]
    assert hook is not None and hook.connection_id_attribute_name == "vlmflow_conn_id"
    assert "vlm_batch" in manager.taskflow_decorators
