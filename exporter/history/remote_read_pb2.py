"""The messages of remote_read.proto, from the descriptors that protoc writes (`make proto`); the types are in the .pyi file.

protoc can write Python code instead, but that refuses to run with a protobuf older than the protoc, and a program that installs
the exporter as a library may pin one. Descriptors have no such version.
"""

from importlib.resources import files

from google.protobuf.descriptor_pb2 import FileDescriptorSet
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass

(_file,) = FileDescriptorSet.FromString(files("exporter.history").joinpath("remote_read.binpb").read_bytes()).file
_pool = DescriptorPool()
_pool.Add(_file)
globals().update(
    {each.name: GetMessageClass(_pool.FindMessageTypeByName(f"{_file.package}.{each.name}")) for each in _file.message_type}
)
