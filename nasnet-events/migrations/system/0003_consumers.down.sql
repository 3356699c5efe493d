DROP TABLE event_left_out;
DROP TABLE event_dead_letters;
DROP TABLE event_blocked;
DROP TABLE event_consumers;
