/*
 * log: one line per event on standard error: time, level, component, text.
 *
 * Levels by volume: error needs a human, warn we go on (and say how), info per worker event,
 * debug per request, trace per step. Lower case, request id first, numbers with units. The text of
 * prompts is never logged.
 *
 * Threads   any; a line is written with one write(2) and never interleaves.
 */
#ifndef BATON_COMMON_BASE_LOG_H
#define BATON_COMMON_BASE_LOG_H

enum log_level { LOG_ERROR, LOG_WARN, LOG_INFO, LOG_DEBUG, LOG_TRACE };

/** Sets the level and the component name (borrowed for the life of the process) once, at start. */
void log_init(const char *component, enum log_level level);

/** Parses "error", "warn", "info", "debug", "trace"; returns -1 for anything else. */
int log_level_parse(const char *name);

/** The level in force; cheap enough to guard a costly argument. */
enum log_level log_level(void);

void log_write(enum log_level level, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

#define log_error(...) log_write(LOG_ERROR, __VA_ARGS__)
#define log_warn(...) log_write(LOG_WARN, __VA_ARGS__)
#define log_info(...) log_write(LOG_INFO, __VA_ARGS__)
#define log_debug(...)                                                                             \
    do {                                                                                           \
        if (log_level() >= LOG_DEBUG)                                                              \
            log_write(LOG_DEBUG, __VA_ARGS__);                                                     \
    } while (0)
#define log_trace(...)                                                                             \
    do {                                                                                           \
        if (log_level() >= LOG_TRACE)                                                              \
            log_write(LOG_TRACE, __VA_ARGS__);                                                     \
    } while (0)

#endif
