DROP TABLE reconcile_record;
DROP TABLE reconcile_op;
DROP TABLE reconcile_device;
