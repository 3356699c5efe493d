DROP TABLE flash_ledger;
