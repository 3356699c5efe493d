DROP TABLE nasnet_fence;
