#include "router/api_error.h"

#include "common/base/json.h"
#include "common/base/utf8.h"

static const char *type_of(int http_status)
{
    switch (http_status) {
    case 401:
        return "authentication_error";
    case 403:
        return "permission_error";
    case 404:
        return "not_found_error";
    case 429:
        return "rate_limit_error";
    case 503:
        return "service_unavailable_error";
    case 504:
        return "timeout_error";
    default:
        return http_status >= 500 ? "internal_server_error" : "invalid_request_error";
    }
}

static const char *code_of(int http_status)
{
    switch (http_status) {
    case 400:
        return "invalid_value";
    case 401:
        return "invalid_api_key";
    case 404:
        return "not_found";
    case 429:
        return "overloaded";
    case 503:
        return "unavailable";
    case 504:
        return "timeout";
    default:
        return http_status >= 500 ? "internal_error" : "bad_request";
    }
}

void api_error_text(struct buf *out, const char *s)
{
    size_t n = strlen(s), good = utf8_valid_prefix(s, n);
    struct buf clean = {0};

    if (good == n) {
        json_write_string(out, s, n);
        return;
    }
    while (n > 0) {
        buf_append(&clean, s, good);
        s += good, n -= good;
        if (n > 0) {
            buf_puts(&clean, "?");
            s++, n--;
        }
        good = utf8_valid_prefix(s, n);
    }
    json_write_string(out, clean.data, clean.len);
    buf_deinit(&clean);
}

void api_error_json(struct buf *out, int http_status, const char *param, const char *code,
                    const char *message)
{
    buf_puts(out, "{\"error\":{\"message\":");
    api_error_text(out, message);
    buf_printf(out, ",\"type\":\"%s\",\"param\":", type_of(http_status));
    if (param == NULL || *param == '\0')
        buf_puts(out, "null");
    else
        api_error_text(out, param);
    buf_printf(out, ",\"code\":\"%s\"}}", code == NULL ? code_of(http_status) : code);
}

static const char *anthropic_type_of(int http_status)
{
    switch (http_status) {
    case 401:
        return "authentication_error";
    case 403:
        return "permission_error";
    case 404:
        return "not_found_error";
    case 413:
        return "request_too_large";
    case 429:
        return "rate_limit_error";
    case 503:
        return "overloaded_error";
    case 504:
        return "timeout_error";
    default:
        return http_status >= 500 ? "api_error" : "invalid_request_error";
    }
}

void api_error_anthropic_json(struct buf *out, int http_status, const char *request_id,
                              const char *message)
{
    buf_printf(out, "{\"type\":\"error\",\"error\":{\"type\":\"%s\",\"message\":",
               anthropic_type_of(http_status));
    api_error_text(out, message);
    buf_puts(out, "},\"request_id\":");
    api_error_text(out, request_id);
    buf_puts(out, "}");
}
