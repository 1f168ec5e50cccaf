"""What is wrong with a request before any operation saw it."""

from __future__ import annotations

from vmsnix_ops.sandbox.core import AwsError

NOT_EMULATED = "NotImplemented"


def not_emulated(service: str, operation: str, what: str) -> AwsError:
    """Return the loud refusal of something that AWS has and the sandbox does not.

    Parameters
    ----------
    service, operation
        Which operation was called.
    what
        What about it is not emulated, such as ``"the parameter 'Foo'"``; empty for all of it.
    """
    subject = f"{what} of {service}:{operation}" if what else f"{service}:{operation}"
    return AwsError(NOT_EMULATED, f"The sandbox does not emulate {subject}.", status=501)


def unknown_action(action: str) -> AwsError:
    """Return the refusal of an action that AWS does not have either."""
    return AwsError("InvalidAction", f"The action {action} is not valid for this web service.")


def missing_parameter(name: str, protocol: str) -> AwsError:
    """Return the refusal of a request without a required parameter, as its protocol words it."""
    if protocol == "ec2":
        return AwsError("MissingParameter", f"The request must contain the parameter {name}")
    text = (
        f"1 validation error detected: Value at '{_lower(name)}' failed to satisfy constraint: "
        "Member must not be null"
    )
    return AwsError(_validation_code(protocol), text)


def unknown_parameter(name: str, protocol: str) -> AwsError:
    """Return the refusal of a parameter that the operation does not have."""
    if protocol == "ec2":
        return AwsError("UnknownParameter", f"The parameter {name} is not recognized")
    return AwsError(_validation_code(protocol), f"Unknown parameter {name}")


def bad_value(name: str, text: str, expected: str, protocol: str) -> AwsError:
    """Return the refusal of a value of the wrong type."""
    if protocol == "ec2":
        return AwsError(
            "InvalidParameterValue", f"Value ({text}) for parameter {name} is invalid. It is no {expected}."
        )
    if protocol == "rest-xml":
        return AwsError("InvalidArgument", f"{name} is no {expected}", ArgumentName=name, ArgumentValue=text)
    if protocol == "query":
        return AwsError("MalformedInput", f"{text} is no {expected} ({name})")
    return AwsError("SerializationException", f"{name} is no {expected}")


def _validation_code(protocol: str) -> str:
    return {"query": "ValidationError", "rest-xml": "InvalidRequest"}.get(protocol, "ValidationException")


def _lower(name: str) -> str:
    return name[:1].lower() + name[1:]
