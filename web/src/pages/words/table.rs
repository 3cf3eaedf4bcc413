//! The table: a key, then English, then simplified Chinese. `{}` is where a value goes.

macro_rules! table {
    ($($key:ident: $en:literal, $zh:literal;)*) => {
        /// Words of one language.
        #[derive(Debug)]
        pub(crate) struct Words {
            $(pub(crate) $key: &'static str,)*
        }

        /// English.
        pub(crate) static EN: Words = Words { $($key: $en,)* };
        /// Simplified Chinese.
        pub(crate) static ZH: Words = Words { $($key: $zh,)* };

        #[cfg(test)]
        impl Words {
            /// Keys and words.
            pub(crate) fn all(&self) -> Vec<(&'static str, &'static str)> {
                vec![$((stringify!($key), self.$key),)*]
            }
        }
    };
}

table! {
    // The frame.
    skip: "Skip to content", "跳到正文";
    menu: "Menu", "菜单";
    viewer: "Viewer", "查看者";
    operator: "Operator", "操作员";
    admin: "Administrator", "管理员";
    log_out: "Log out", "退出登录";
    theme_auto: "Auto", "自动";
    theme_light: "Light", "浅色";
    theme_dark: "Dark", "深色";
    show: "Show", "查看";
    cancel: "Cancel", "取消";
    yes: "Yes", "是";
    no: "No", "否";
    none: "None", "无";

    // The banner.
    change_waits: "A change waits for you.", "有一项更改等待您确认。";
    put_back_in: "It is put back in", "将自动恢复，剩余时间";
    still_come_in: "Confirm it if you can still reach this page and the box does what you want.", "如果您仍能打开此页面，且设备运行符合预期，请确认。";
    confirm: "Confirm", "确认";
    put_back_now: "Put back now", "立即恢复";
    change_runs: "A change is being applied.", "正在应用更改。";

    // What was done, and what was not.
    asked_for: "Asked for: {}", "已请求：{}";
    saved: "The file is saved. Nothing has been applied.", "文件已保存，尚未应用。";
    confirmed: "The change is confirmed.", "更改已确认。";
    removed: "{} is removed.", "{} 已删除。";
    applying: "The change is being applied.", "正在应用更改。";
    not_done: "This was not done", "操作未完成";
    no_such_page: "There is no such page.", "没有这个页面。";
    form_is_old: "This form is of another login. Go back, load the page again and repeat it.", "此表单属于另一次登录。请返回、重新加载页面后再试。";

    // The overview.
    overview: "Overview", "概览";
    needs_attention: "Needs attention", "需要处理";
    all_well: "The host is as the file says, and nothing needs you.", "主机与配置文件一致，无需处理。";
    nothing_wrong: "Nothing needs you. No file has been applied yet.", "无需处理。尚未应用任何配置文件。";
    guest_fails: "{} failed and is started again: {}", "{} 发生故障，正在重新启动：{}";
    guest_is_old: "{} runs as an older version of the file says; it changes at its next start", "{} 仍按旧版配置运行，下次启动时生效";
    drift_is: "The host differs from the file in {} places", "主机与配置文件有 {} 处不一致";
    n_of_m_run: "{} of {} running", "{} / {} 运行中";
    this_box: "This box", "本机";
    used_of: "{} of {} used", "已用 {}，共 {}";
    processors: "Processors", "处理器";
    load: "load", "负载";
    uptime: "Up for", "运行时间";
    kernel: "Kernel", "内核";

    // Guests.
    guests: "Guests", "虚拟机";
    guest: "Guest", "虚拟机";
    no_guests: "There are no guests yet.", "还没有虚拟机。";
    new_guest: "New guest", "新建虚拟机";
    state: "State", "状态";
    off: "Off", "已关机";
    waiting: "Waiting", "等待中";
    starting: "Starting", "启动中";
    running: "Running", "运行中";
    paused: "Paused", "已暂停";
    stopping: "Stopping", "关机中";
    backing_off: "Failed", "故障";
    cpu: "CPU", "处理器";
    memory: "Memory", "内存";
    exits: "Exits", "退出";
    interrupts: "Interrupts", "中断";
    packets: "Packets", "数据包";
    size: "Size", "规格";
    devices: "Devices", "设备";
    actions: "Actions", "操作";
    start: "Start", "启动";
    stop: "Shut down", "关机";
    pause: "Pause", "暂停";
    resume: "Resume", "继续";
    power_button: "Power button", "电源键";
    reset: "Reset", "重置";
    pull_plug: "Pull the plug", "强制断电";
    sure: "The guest {} has no chance to save its work. {}?", "虚拟机 {} 将无法保存工作。确定要{}吗？";
    changed_since: "File changed since its start", "启动后配置已更改";
    not_in_file: "not in the file", "不在配置文件中";
    n_vcpus: "{} vCPU", "{} 个虚拟处理器";
    now: "Now", "当前";
    facts: "Facts", "基本信息";
    pinned: "{} pinned", "{} 已锁定";
    autostart: "Starts with the box", "随主机启动";
    process: "Process", "进程";
    failures: "Failures in a row", "连续故障";
    passed_through: "passed through", "直通";
    link_up: "plugged in", "已连接";
    link_down: "unplugged", "未连接";
    exits_by_cause: "Exits by cause", "退出原因";
    no_such_guest: "There is no guest {}.", "没有名为 {} 的虚拟机。";
}
