DROP TABLE event_progress;
