"""The messages of the gRPC form, from a table instead of generated code.

Sources: github.com/kserve/open-inference-protocol, ``specification/protocol/inference_grpc.md``,
and the extensions of github.com/triton-inference-server/common, ``protobuf/grpc_service.proto``
(configuration, statistics, repository). Numbers and types are theirs; on the wire the names of
messages do not matter, and ``InferTarget`` is the beginning of a ModelInferRequest. Fields that
nothing here reads or writes are left out, and are ignored.
"""

from __future__ import annotations

import re
from typing import Any

from google.protobuf import (  # type: ignore[import-untyped]
    descriptor_pb2,
    descriptor_pool,
    message_factory,
)

PACKAGE = "inference"
SERVICE = f"{PACKAGE}.GRPCInferenceService"

METHODS = {
    name: (f"{name}Request", f"{name}Response")
    for name in (
        "ServerLive", "ServerReady", "ModelReady", "ServerMetadata", "ModelMetadata", "ModelInfer",
        "ModelConfig", "ModelStatistics", "RepositoryIndex", "RepositoryModelLoad",
        "RepositoryModelUnload",
    )
} | {"ModelStreamInfer": ("ModelInferRequest", "ModelStreamInferResponse")}  # fmt: skip
"""The messages that each method takes and gives."""

# NAME: field type number, ...; a star repeats a field, <> is a map from strings, | is a choice
_MESSAGES = """
ServerLiveRequest:
ServerLiveResponse: live bool 1
ServerReadyRequest:
ServerReadyResponse: ready bool 1
ModelReadyRequest: name string 1, version string 2
ModelReadyResponse: ready bool 1
ServerMetadataRequest:
ServerMetadataResponse: name string 1, version string 2, extensions string* 3
ModelMetadataRequest: name string 1, version string 2
TensorMetadata: name string 1, datatype string 2, shape int64* 3
ModelMetadataResponse: name string 1, versions string* 2, platform string 3, inputs TensorMetadata* 4, outputs TensorMetadata* 5
InferParameter: bool_param bool| 1, int64_param int64| 2, string_param string| 3, double_param double| 4, uint64_param uint64| 5
InferTensorContents: bool_contents bool* 1, int_contents int32* 2, int64_contents int64* 3, uint_contents uint32* 4, uint64_contents uint64* 5, fp32_contents float* 6, fp64_contents double* 7, bytes_contents bytes* 8
InferInputTensor: name string 1, datatype string 2, shape int64* 3, parameters InferParameter<> 4, contents InferTensorContents 5
InferRequestedOutputTensor: name string 1, parameters InferParameter<> 2
InferTarget: model_name string 1, model_version string 2
ModelInferRequest: model_name string 1, model_version string 2, id string 3, parameters InferParameter<> 4, inputs InferInputTensor* 5, outputs InferRequestedOutputTensor* 6, raw_input_contents bytes* 7
InferOutputTensor: name string 1, datatype string 2, shape int64* 3, parameters InferParameter<> 4, contents InferTensorContents 5
ModelInferResponse: model_name string 1, model_version string 2, id string 3, parameters InferParameter<> 4, outputs InferOutputTensor* 5, raw_output_contents bytes* 6
ModelStreamInferResponse: error_message string 1, infer_response ModelInferResponse 2
ModelConfigRequest: name string 1, version string 2
ModelInput: name string 1, data_type DataType 2, dims int64* 4
ModelOutput: name string 1, data_type DataType 2, dims int64* 3
ModelConfig: name string 1, platform string 2, max_batch_size int32 4, input ModelInput* 5, output ModelOutput* 6, backend string 17
ModelConfigResponse: config ModelConfig 1
ModelStatisticsRequest: name string 1, version string 2
StatisticDuration: count uint64 1, ns uint64 2
InferStatistics: success StatisticDuration 1, fail StatisticDuration 2, queue StatisticDuration 3, compute_input StatisticDuration 4, compute_infer StatisticDuration 5, compute_output StatisticDuration 6, cache_hit StatisticDuration 7, cache_miss StatisticDuration 8
InferBatchStatistics: batch_size uint64 1, compute_input StatisticDuration 2, compute_infer StatisticDuration 3, compute_output StatisticDuration 4
ModelStatistics: name string 1, version string 2, last_inference uint64 3, inference_count uint64 4, execution_count uint64 5, inference_stats InferStatistics 6, batch_stats InferBatchStatistics* 7
ModelStatisticsResponse: model_stats ModelStatistics* 1
ModelRepositoryParameter: bool_param bool| 1, int64_param int64| 2, string_param string| 3, bytes_param bytes| 4
RepositoryIndexRequest: repository_name string 1, ready bool 2
ModelIndex: name string 1, version string 2, state string 3, reason string 4
RepositoryIndexResponse: models ModelIndex* 1
RepositoryModelLoadRequest: repository_name string 1, model_name string 2, parameters ModelRepositoryParameter<> 3
RepositoryModelLoadResponse:
RepositoryModelUnloadRequest: repository_name string 1, model_name string 2, parameters ModelRepositoryParameter<> 3
RepositoryModelUnloadResponse:
"""  # noqa: E501 - a table

_DATA_TYPES = (
    "INVALID", "BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64",
    "FP16", "FP32", "FP64", "STRING", "BF16",
)  # fmt: skip

_Field = descriptor_pb2.FieldDescriptorProto
_SCALARS = {
    name: getattr(_Field, f"TYPE_{name.upper()}")
    for name in (
        "bool", "bytes", "double", "float", "int32", "int64", "string", "uint32", "uint64",
    )
}  # fmt: skip
_LINE = re.compile(r"(\w+) (\w+)(\*|<>|\|)? (\d+)")


def message_classes() -> dict[str, type[Any]]:
    """The class of each message, by its name.

    They live in a pool of their own, so that another library's copy of the protocol in the same
    process does not collide with them.
    """
    file = descriptor_pb2.FileDescriptorProto(
        name="edgepack/inference.proto", package=PACKAGE, syntax="proto3"
    )
    kinds = file.enum_type.add(name="DataType")
    for number, name in enumerate(_DATA_TYPES):
        kinds.value.add(name=f"TYPE_{name}", number=number)
    for line in _MESSAGES.strip().splitlines():
        name, _, fields = line.partition(":")
        _add_message(file.message_type.add(name=name), fields)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {
        one.name: message_factory.GetMessageClass(
            pool.FindMessageTypeByName(f"{PACKAGE}.{one.name}")
        )
        for one in file.message_type
    }


def _add_message(message: descriptor_pb2.DescriptorProto, fields: str) -> None:
    for name, kind, mark, number in _LINE.findall(fields):
        field = message.field.add(name=name, number=int(number), label=_Field.LABEL_OPTIONAL)
        if mark == "<>":
            _add_map(message, field, kind)
            continue
        _set_type(field, kind)
        if mark == "*":
            field.label = _Field.LABEL_REPEATED
        elif mark == "|":
            if not message.oneof_decl:
                message.oneof_decl.add(name="parameter_choice")
            field.oneof_index = 0


def _add_map(
    message: descriptor_pb2.DescriptorProto, field: descriptor_pb2.FieldDescriptorProto, kind: str
) -> None:
    entry = message.nested_type.add(name=f"{field.name.capitalize()}Entry")
    entry.options.map_entry = True
    entry.field.add(name="key", number=1, label=_Field.LABEL_OPTIONAL, type=_Field.TYPE_STRING)
    _set_type(entry.field.add(name="value", number=2, label=_Field.LABEL_OPTIONAL), kind)
    field.label = _Field.LABEL_REPEATED
    field.type = _Field.TYPE_MESSAGE
    field.type_name = f".{PACKAGE}.{message.name}.{entry.name}"


def _set_type(field: descriptor_pb2.FieldDescriptorProto, kind: str) -> None:
    if kind in _SCALARS:
        field.type = _SCALARS[kind]
        return
    field.type = _Field.TYPE_ENUM if kind == "DataType" else _Field.TYPE_MESSAGE
    field.type_name = f".{PACKAGE}.{kind}"
