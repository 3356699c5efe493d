DROP TABLE event_epochs;
