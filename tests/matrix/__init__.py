"""Networks from PyTorch, served over gRPC and compared with PyTorch offline."""
