"""The connection type `vlmflow`: where a team's S3, MLflow, image and interpreter are."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from airflow.sdk import BaseHook
from airflow.sdk.exceptions import AirflowFailException, AirflowNotFoundException
from airflow.sdk.log import mask_secret

from vlmflow.airflow.connection_form import EXTRA_FIELDS, HIDDEN_FIELDS, PLACEHOLDERS, RELABELED

if TYPE_CHECKING:
    from airflow.sdk import Connection

    from vlmflow.job.store import S3Credentials, StoreOpener

CONN_TYPE = "vlmflow"
DEFAULT_CONN_NAME = "vlmflow_default"
HOOK_NAME = "vlmflow"

_AWS_VARIABLES = (
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_SECURITY_TOKEN",
    "AWS_PROFILE",
    "AWS_DEFAULT_PROFILE",
    "AWS_ROLE_ARN",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
)


@dataclass(frozen=True, slots=True)
class Settings:
    """What a connection says; None where it says nothing."""

    endpoint_url: str | None = None
    mlflow_uri: str | None = None
    image: str | None = None
    python: str | None = None
    mlflow_user: str | None = None
    mlflow_password: str | None = field(default=None, repr=False)


class VLMFlowHook(BaseHook):
    """Settings of a connection, and the S3 store with an AWS connection's credentials.

    :param vlmflow_conn_id: of type `vlmflow`; None: there are no settings.
    :param aws_conn_id: of type `aws`; None: boto3's own chain finds credentials.

    Secrets leave a connection in two ways only: into the environment of the job's process
    (`environment`), and into S3 clients of this process (`opener`).
    """

    conn_name_attr = "vlmflow_conn_id"
    default_conn_name = DEFAULT_CONN_NAME
    conn_type = CONN_TYPE
    hook_name = HOOK_NAME

    def __init__(
        self, vlmflow_conn_id: str | None = DEFAULT_CONN_NAME, aws_conn_id: str | None = None
    ) -> None:
        super().__init__()
        self.vlmflow_conn_id = vlmflow_conn_id
        self.aws_conn_id = aws_conn_id

    @classmethod
    def get_connection_form_widgets(cls) -> dict[str, Any]:
        """The form's fields, for versions of Airflow that ask the hook and not the provider."""
        from flask_appbuilder.fieldwidgets import BS3TextFieldWidget
        from wtforms import StringField
        from wtforms.validators import Optional

        return {
            form_field.name: StringField(
                form_field.label,
                description=form_field.description,
                widget=BS3TextFieldWidget(),
                validators=[Optional()],
            )
            for form_field in EXTRA_FIELDS
        }

    @classmethod
    def get_ui_field_behaviour(cls) -> dict[str, Any]:
        """Which of the usual fields the form shows, and under which names."""
        return {
            "hidden_fields": list(HIDDEN_FIELDS),
            "relabeling": dict(RELABELED),
            "placeholders": dict(PLACEHOLDERS),
        }

    @cached_property
    def settings(self) -> Settings:
        """Raises AirflowNotFoundException if there is no such connection, AirflowFailException if
        it is of another type.
        """
        if self.vlmflow_conn_id is None:
            return Settings()
        return settings_of(self._find(self.vlmflow_conn_id, "vlmflow_conn_id", CONN_TYPE))

    @cached_property
    def credentials(self) -> "S3Credentials | None":
        """The AWS connection's, after it has assumed its role; None without a connection.

        Raises as `settings` does.
        """
        if self.aws_conn_id is None:
            return None
        return credentials_of(self._find(self.aws_conn_id, "aws_conn_id", "aws"))

    def _find(self, conn_id: str, argument: str, kind: str) -> "Connection":
        try:
            connection = self.get_connection(conn_id)
        except AirflowNotFoundException:
            # As Airflow has it, a retry may help: a secrets backend that is away says the same.
            raise AirflowNotFoundException(
                f"{argument} {conn_id!r}: there is no such connection; make one of type {kind!r}, "
                "or give the name of another"
            ) from None
        if connection.conn_type in {CONN_TYPE, "aws"} - {kind}:  # one taken for the other
            raise AirflowFailException(
                f"{argument} {conn_id!r} is a connection of type {connection.conn_type!r}; give "
                f"one of type {kind!r}"
            )
        return connection

    def opener(self, endpoint_url: str | None) -> "StoreOpener":
        """Opens stores in this process, with the AWS connection's credentials."""
        from vlmflow.job.store import StoreOpener

        return StoreOpener(endpoint_url, max_connections=4, credentials=self.credentials)

    def environment(self, inherited: Mapping[str, str] | None = None) -> dict[str, str]:
        """The environment of the job's process: the worker's (or `inherited`), less what Airflow
        keeps there for itself, and with the connections' secrets.
        """
        inherited = os.environ if inherited is None else inherited
        # Airflow's own settings hold the metadata database's password, connections and variables.
        environment = {
            name: value
            for name, value in inherited.items()
            if not name.startswith(("AIRFLOW__", "AIRFLOW_CONN_", "AIRFLOW_VAR_", "_AIRFLOW_"))
        }
        for name, value in (
            ("MLFLOW_TRACKING_USERNAME", self.settings.mlflow_user),
            ("MLFLOW_TRACKING_PASSWORD", self.settings.mlflow_password),
        ):
            if value:
                environment[name] = value
        return environment | self._aws_environment(environment)

    def _aws_environment(self, environment: dict[str, str]) -> dict[str, str]:
        credentials = self.credentials
        if credentials is None:
            return {}
        for name in _AWS_VARIABLES:  # one of them would go before what we say
            environment.pop(name, None)
        found = {
            "AWS_ACCESS_KEY_ID": credentials.access_key,
            "AWS_SECRET_ACCESS_KEY": credentials.secret_key,
        }
        if credentials.session_token:
            found["AWS_SESSION_TOKEN"] = credentials.session_token
        if credentials.region:
            found |= {
                "AWS_DEFAULT_REGION": credentials.region,
                "AWS_REGION": credentials.region,
            }
        return found


def settings_of(connection: "Connection") -> Settings:
    """What a connection of type `vlmflow` says."""
    extra = connection.extra_dejson
    names = [form_field.name for form_field in EXTRA_FIELDS]
    given = {name: str(extra[name]).strip() or None for name in names if extra.get(name)}
    if connection.password:
        mask_secret(connection.password)
    mask_password(given.get("mlflow_uri"))
    return Settings(
        **given,
        mlflow_user=connection.login or None,
        mlflow_password=connection.password or None,
    )


def mask_password(uri: str | None) -> None:
    """Mask the password of a URI in logs, as it stands there and as it is meant."""
    if found := re.match(r"[^/]*//[^/@:]*:([^/]+)@", uri or ""):
        mask_secret(found[1])
        mask_secret(unquote(found[1]))


def credentials_of(connection: "Connection") -> "S3Credentials | None":
    """What a connection of type `aws` comes to; None if it leaves that to boto3's own chain."""
    from airflow.providers.amazon.aws.hooks.base_aws import BaseSessionFactory
    from airflow.providers.amazon.aws.utils.connection_wrapper import AwsConnectionWrapper

    from vlmflow.job.store import S3Credentials

    session = BaseSessionFactory(conn=AwsConnectionWrapper(conn=connection)).create_session()
    found = session.get_credentials()
    if found is None:
        return None
    frozen = found.get_frozen_credentials()  # of one moment: keys of a role change together
    for secret in (frozen.access_key, frozen.secret_key, frozen.token):
        if secret:
            mask_secret(secret)
    return S3Credentials(frozen.access_key, frozen.secret_key, frozen.token, session.region_name)
