// What the boot protocol tells, made the same for PVH and Linux.
#include "guest.h"

extern u64 boot_info;
extern u32 boot_protocol;

const struct boot *boot(void)
{
    static struct boot told;
    if (told.cmdline)
        return &told;
    u64 table, stride;
    if (boot_protocol == BOOT_PVH) {
        // Xen, docs/misc/pvh.pandoc: struct hvm_start_info.
        told.cmdline = (const char *)read64(boot_info + 24);
        told.rsdp = read64(boot_info + 32);
        table = read64(boot_info + 40);
        told.count = read32(boot_info + 48);
        stride = 24;
        // The first module.
        if (read32(boot_info + 12)) {
            told.initrd = read64(read64(boot_info + 16));
            told.initrd_size = read64(read64(boot_info + 16) + 8);
        }
    } else {
        // Linux, Documentation/arch/x86/zero-page.rst.
        told.cmdline = (const char *)(u64)read32(boot_info + 0x228);
        told.rsdp = read64(boot_info + 0x70);
        table = boot_info + 0x2d0;
        told.count = read8(boot_info + 0x1e8);
        stride = 20;
        told.initrd = read32(boot_info + 0x218);
        told.initrd_size = read32(boot_info + 0x21c);
    }
    if (told.count > 32)
        told.count = 32;
    for (unsigned i = 0; i < told.count; i++, table += stride)
        told.ranges[i] = (struct range){read64(table), read64(table + 8), read32(table + 16)};
    return &told;
}

// Where the value of `name=` begins, or NULL.
static const char *value(const char *name)
{
    for (const char *at = boot()->cmdline; *at; at++) {
        const char *a = at, *b = name;
        while (*b && *a == *b)
            a++, b++;
        if (!*b && *a == '=')
            return a + 1;
        while (*at && *at != ' ')
            at++;
        if (!*at)
            break;
    }
    return 0;
}

u64 number(const char *name, u64 fallback)
{
    const char *at = value(name);
    if (!at)
        return fallback;
    u64 result = 0;
    while (*at >= '0' && *at <= '9')
        result = result * 10 + (u64)(*at++ - '0');
    return result;
}

bool word_is(const char *name, const char *wanted)
{
    const char *at = value(name);
    if (!at)
        return false;
    while (*wanted && *at == *wanted)
        at++, wanted++;
    return !*wanted && (*at == ' ' || !*at);
}
