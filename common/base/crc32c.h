/*
 * crc32c: the checksum of KV page pieces (Castagnoli polynomial 0x1EDC6F41, reflected, as in
 * iSCSI).
 *
 * Threads   no state.
 */
#ifndef BATON_COMMON_BASE_CRC32C_H
#define BATON_COMMON_BASE_CRC32C_H

#include <stddef.h>
#include <stdint.h>

/**
 * Continues a checksum over n more bytes.
 * @param crc  0 to begin, else the value returned for the bytes before
 * Uses the processor's carry-less multiplication where there is one; same value everywhere.
 * crc32c(0, "123456789", 9) is 0xE3069283.
 */
uint32_t crc32c(uint32_t crc, const void *data, size_t n);

/**
 * The same while copying the bytes: one pass over memory instead of two. The copy goes past the
 * caches (it is meant for another process, and larger than they are): crc32c_copy_end() must follow
 * before anybody else is told of it.
 * @param dst  n bytes that do not overlap data
 */
uint32_t crc32c_copy(uint32_t crc, void *dst, const void *data, size_t n);

/** After this, whoever learns of the copies of this thread sees their bytes. */
void crc32c_copy_end(void);

/** How it is done on this processor: "vpclmulqdq", "pclmulqdq" or "table"; for benchmarks. */
const char *crc32c_method(void);

/** The same by one method of those above, for tests; a method that the processor lacks gives the
 * next simpler one. dst may be NULL: no copy. */
uint32_t crc32c_by(const char *method, uint32_t crc, void *dst, const void *data, size_t n);

#endif
