DROP TABLE event_dead_letters;
DROP TABLE event_blocked;
DROP TABLE event_consumers;
