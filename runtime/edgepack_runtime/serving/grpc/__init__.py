"""The gRPC form of the Open Inference Protocol; needs the extra ``edgepack[grpc]``."""
