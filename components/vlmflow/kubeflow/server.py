"""A server of Kubeflow Pipelines, asked in a way that fails with one sentence."""

import json
import os
import ssl
import warnings
from contextlib import suppress
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any, ClassVar
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

from vlmflow.job.errors import EXIT_RESUMABLE, JobError, SpecError
from vlmflow.job.store.locate import without_query

HOST_VARIABLE = "KF_PIPELINES_ENDPOINT"  # KFP's own name
TOKEN_VARIABLE = "KF_PIPELINES_TOKEN"
COOKIE_VARIABLE = "KF_PIPELINES_COOKIE"
CA_VARIABLE = "KF_PIPELINES_CA"
SA_TOKEN_VARIABLE = "KF_PIPELINES_SA_TOKEN_PATH"  # KFP's own name

_HEALTH = "/apis/v2beta1/healthz"
_SECONDS = 15.0


class ServerUnreachableError(JobError):
    """A server that does not answer now."""

    exit_code: ClassVar[int] = EXIT_RESUMABLE


@dataclass(frozen=True, slots=True)
class KfpServer:
    """Where it is, and who asks."""

    host: str  # as it was given
    namespace: str | None = None
    token: str | None = None
    cookie: str | None = None
    ca_file: str | None = None

    @classmethod
    def from_environment(
        cls, host: str | None, *, namespace: str | None = None
    ) -> "KfpServer | None":
        """With credentials from the environment; None if nobody says where the server is."""
        host = host or os.environ.get(HOST_VARIABLE)
        if not host:
            return None
        token = os.environ.get(TOKEN_VARIABLE)
        token_file = os.environ.get(SA_TOKEN_VARIABLE)
        if token is None and token_file and Path(token_file).is_file():
            token = Path(token_file).read_text().strip()
        return cls(
            host,
            namespace,
            token,
            os.environ.get(COOKIE_VARIABLE),
            os.environ.get(CA_VARIABLE),
        )

    def run(
        self,
        package: Path,
        parameters: dict[str, Any],
        *,
        run_name: str,
        experiment: str,
        service_account: str | None = None,
        pipeline_root: str | None = None,
    ) -> str:
        """Start a run of a compiled pipeline; return the address of its page.

        Raises SpecError for what the server refuses, ServerUnreachableError if there is none.
        """
        url = self._url()
        self._check_health(url)
        import kfp
        from kfp_server_api import ApiException
        from urllib3.exceptions import HTTPError as TransportError

        try:
            with warnings.catch_warnings():
                # kfp says of each client that servers before 2.0 are too old for it.
                warnings.simplefilter("ignore", FutureWarning)
                client = kfp.Client(
                    host=url,
                    existing_token=self.token,
                    cookies=self.cookie,
                    ssl_ca_cert=self.ca_file,
                )
            started = client.create_run_from_pipeline_package(
                str(package),
                arguments=parameters,
                run_name=run_name,
                experiment_name=experiment,
                namespace=self.namespace,
                service_account=service_account,
                pipeline_root=pipeline_root,
            )
        except ApiException as error:
            raise _refusal(url, error.status, error.body or error.reason) from error
        except (TransportError, OSError) as error:
            raise ServerUnreachableError(f"{url} did not answer: {error}") from error
        return f"{url}/#/runs/details/{started.run_id}"

    def _url(self) -> str:
        """Raises SpecError for what is no address."""
        try:
            parts = urlsplit(self.host)
            is_url = parts.scheme in ("http", "https") and bool(parts.hostname)
            _ = parts.port  # raises ValueError if it is no number
        except ValueError:
            is_url = False
        if not is_url or without_query(self.host) != self.host:
            raise SpecError(
                f"--host {without_query(self.host)!r} must be a URL such as http://localhost:8080, "
                f"without user, password or query; credentials are in {TOKEN_VARIABLE} or "
                f"{COOKIE_VARIABLE}"
            )
        return self.host.rstrip("/")

    def _check_health(self, url: str) -> None:
        """kfp's client asks five times and logs five tracebacks; this asks once."""
        headers = {"Accept": "application/json"}
        if self.token:
            headers["Authorization"] = f"Bearer {self.token}"
        if self.cookie:
            headers["Cookie"] = self.cookie
        try:
            context = ssl.create_default_context(cafile=self.ca_file)
            request = Request(url + _HEALTH, headers=headers)
            with urlopen(request, timeout=_SECONDS, context=context) as answer:
                content = answer.read(1 << 20)
        except HTTPError as error:
            with error:
                raise _refusal(url, error.code, error.reason) from error
        except (URLError, HTTPException, OSError) as error:
            reason = getattr(error, "reason", None) or error
            raise ServerUnreachableError(
                f"{url} cannot be reached: {reason}; is the port forwarded (kubectl port-forward "
                "-n kubeflow svc/ml-pipeline-ui 8080:80)?"
            ) from error
        try:
            json.loads(content)
        except ValueError as error:
            raise SpecError(
                f"{url} answers, but not as Kubeflow Pipelines: it may be a login page; give "
                f"{TOKEN_VARIABLE} or {COOKIE_VARIABLE}, or the address of the API"
            ) from error


def _refusal(url: str, status: int | None, told: Any) -> JobError:
    text = told.decode(errors="replace") if isinstance(told, bytes) else str(told)
    with suppress(ValueError, KeyError, TypeError):  # else it is no message of KFP's own
        text = json.loads(text)["error_message"]
    reason = " ".join(str(text).split())[:500]
    if status in (401, 403):
        return SpecError(
            f"{url} refuses us ({status}: {reason}); give {TOKEN_VARIABLE} or {COOKIE_VARIABLE}, "
            "and --namespace where Kubeflow has several users"
        )
    if status is not None and status >= 500:
        return ServerUnreachableError(f"{url} is not well ({status}: {reason})")
    return SpecError(f"{url} refuses the run ({status}: {reason})")
