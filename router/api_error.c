#include "router/api_error.h"

#include "common/base/json.h"

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

void api_error_json(struct buf *out, int http_status, const char *param, const char *message)
{
    buf_puts(out, "{\"error\":{\"message\":");
    json_write_string(out, message, strlen(message));
    buf_printf(out, ",\"type\":\"%s\",\"param\":", type_of(http_status));
    if (param == NULL)
        buf_puts(out, "null");
    else
        json_write_string(out, param, strlen(param));
    buf_printf(out, ",\"code\":%d}}", http_status);
}
