#include "common/base/log.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static const char *const names[] = {"error", "warn", "info", "debug", "trace"};

/* Written once by log_init() before any other thread starts. */
static enum log_level max_level = LOG_INFO;
static const char *component_name = "baton";

void log_init(const char *component, enum log_level level)
{
    component_name = component;
    max_level = level;
}

int log_level_parse(const char *name)
{
    for (int i = LOG_ERROR; i <= LOG_TRACE; i++)
        if (strcmp(name, names[i]) == 0)
            return i;
    return -1;
}

enum log_level log_level(void)
{
    return max_level;
}

void log_write(enum log_level level, const char *fmt, ...)
{
    char line[1200];
    struct timespec now;
    struct tm utc;
    size_t n;
    va_list ap;

    if (level > max_level)
        return;
    clock_gettime(CLOCK_REALTIME, &now);
    gmtime_r(&now.tv_sec, &utc);
    n = strftime(line, sizeof(line), "%Y-%m-%dT%H:%M:%S", &utc);
    n += (size_t)snprintf(line + n, sizeof(line) - n, ".%06ldZ %-5s %s: ", now.tv_nsec / 1000,
                          names[level], component_name);
    va_start(ap, fmt);
    vsnprintf(line + n, sizeof(line) - n - 1, fmt, ap);
    va_end(ap);
    n = strlen(line);
    for (size_t i = 0; i < n; i++)
        if ((unsigned char)line[i] < 0x20)
            line[i] = ' '; /* a peer's bytes must not forge a second line */
    line[n++] = '\n';
    if (write(STDERR_FILENO, line, n) < 0)
        return; /* nowhere left to say it */
}
