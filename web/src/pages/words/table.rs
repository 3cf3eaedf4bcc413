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

    // The file.
    configuration: "Configuration", "配置";
    the_file: "The file", "配置文件";
    is_applied: "this is what holds", "当前生效";
    is_not_applied: "not applied as it is now", "当前内容尚未应用";
    changes: "Changes", "更改记录";
    stale_help: "Your text is below, unchanged. What differs from the file as it is now is shown beside the plan. If you save now, it replaces that.", "您的文本保留在下方，未作改动。与当前文件的差异显示在计划旁边。现在保存将覆盖当前文件。";
    plan: "What would be done", "将执行的操作";
    nothing_to_do: "Nothing: the host is as the text says.", "无：主机已与文本一致。";
    wants_confirmation: "This touches the way that you come in by. After it is applied it waits for you to confirm, and is put back by itself if you do not.", "此更改涉及您的访问通道。应用后需要您确认，否则将自动恢复。";
    no_plan: "There is no plan while the text has errors.", "文本有错误，无法生成计划。";
    difference: "Difference to the file", "与文件的差异";
    no_difference: "None: the text is that of the file.", "无：文本与文件一致。";
    problems: "Problems", "问题";
    text_of_file: "Text of the file", "文件内容";
    show_plan: "Check and show plan", "检查并显示计划";
    save: "Save", "保存";
    save_and_apply: "Save and apply", "保存并应用";

    // Changes.
    changes_help: "Each time that the host was made as the file says, newest first.", "每次按配置文件更改主机的记录，最新的在前。";
    no_changes: "Nothing has been applied yet.", "尚未应用过任何配置。";
    change_applying: "Being applied", "应用中";
    change_waiting: "Waits for you", "等待确认";
    change_committed: "Confirmed", "已生效";
    change_reverted: "Put back", "已恢复";
    change_failed: "Not all put back", "未能完全恢复";
    holds: "holds", "当前";
    what: "What", "内容";
    who: "Who", "操作者";
    when: "When", "时间";
    n_steps: "{} steps", "{} 个步骤";
    put_back: "Put back", "恢复";
    put_back_help: "The host is made again as it was before this change. The file stays as it is.", "主机将恢复到此更改之前的状态，配置文件保持不变。";

    // Devices.
    devices_help: "PCI functions of this box. What shares an IOMMU group is given away together.", "本机的 PCI 功能。同一 IOMMU 组的设备必须一起分配。";
    no_devices: "This box has no PCI functions.", "本机没有 PCI 功能。";
    picture_of_devices: "The PCI tree", "PCI 树";
    colours_are_groups: "A colour is an IOMMU group.", "颜色表示 IOMMU 组。";
    one_by_one: "One by one", "逐项列表";
    verdict_ready: "A guest can have it", "可分配";
    verdict_after: "After something else", "需先处理";
    verdict_no: "Not possible", "不可分配";
    verdict: "Verdict", "结论";
    group_n: "group {}", "组 {}";
    address: "Address", "地址";
    device: "Device", "设备";
    driver: "driver", "驱动";
    held_by: "held by", "使用者";
    give: "Give", "分配";
    give_to: "Give to", "分配给";

    // SR-IOV.
    sriov_help: "Virtual functions of each physical function, with what the file asks for and what the card says.", "各物理功能的虚拟功能（VF），以及配置要求与网卡实际状态。";
    no_sriov: "No function of this box can have virtual functions.", "本机没有支持虚拟功能的设备。";
    no_vfs: "It has no virtual functions now.", "目前没有虚拟功能。";
    number_of_vfs: "Number of VFs", "VF 数量";
    of_n: "of {}", "最多 {}";
    n_of_m_vfs: "{} of {} VFs", "{} / {} 个 VF";
    change: "Change", "更改";
    holder: "Held by", "使用者";
    attributes: "Attributes", "属性";
    free: "free", "空闲";
    wanted_and_is: "{} asked for, {} in fact", "要求 {}，实际 {}";
    wanted_unsupported: "{} asked for, the driver does not say", "要求 {}，驱动不支持";
    unknown: "not known", "未知";
    count_is_no_number: "The number of VFs is a whole number.", "VF 数量必须是整数。";

    // Networks.
    networks: "Networks", "网络";
    networks_help: "From the cards of the host to the guests.", "从主机网卡到虚拟机的连接。";
    no_networks: "The file has no networks.", "配置文件中没有网络。";
    picture_of_network: "Picture of", "网络图：";
    bridge: "bridge", "网桥";
    nat: "NAT", "地址转换（NAT）";
    macvtap: "macvtap", "直连（macvtap）";
    vlan: "VLAN", "虚拟局域网";
    bond: "bond", "链路聚合";
    way_in: "the way in", "管理通道";
    up: "up", "已启用";
    down: "down", "未启用";
    not_there: "not there", "不存在";
    addresses: "Addresses", "地址";
    as_text: "As text", "文字说明";

    // Images.
    images: "Disks and installers", "磁盘与安装镜像";
    images_help: "Files of the folder of images, for disks and CD drives of guests.", "镜像文件夹中的文件，用于虚拟机的磁盘和光驱。";
    bring_in: "Upload", "上传";
    file_here: "A file of this computer", "选择本地文件";
    sent_of: "{} of {} sent", "已上传 {}，共 {}";
    upload_cut: "The upload was cut off; nothing of it was kept.", "上传中断，未保留任何内容。";
    upload_without_script: "Uploading from this page needs JavaScript. Without it, a token and a command do the same:", "从此页面上传需要 JavaScript。也可以使用令牌和命令：";
    no_images: "There are no images yet.", "还没有镜像。";
    name: "Name", "名称";
    on_disk: "On disk", "占用";
    length: "Length", "大小";
    remove: "Remove", "删除";
    sure_image: "{} is deleted for good.", "{} 将被永久删除。";

    // Logs.
    logs: "Logs", "日志";
    audit: "Audit log", "审计日志";
    audit_help: "Who changed what, newest first.", "谁更改了什么，最新的在前。";
    log_of: "Log of", "日志来源";
    the_daemon: "the daemon", "守护进程";
    which_log: "Which log", "日志类型";
    its_process: "its process", "进程日志";
    its_console: "its console", "控制台记录";
    last_lines: "The last lines; there are more before them.", "仅显示最后部分，之前还有更多。";
    empty_log: "Nothing yet.", "暂无内容。";
    no_entries: "Nothing has been changed yet.", "尚无更改。";
    token: "token", "令牌";
    details: "Details", "详情";
    older: "Older", "更早";

    // About.
    about: "About and doctor", "关于与诊断";
    doctor: "What this box is fit for", "本机诊断";
    health_good: "good", "正常";
    health_fair: "fair", "一般";
    health_bad: "bad", "异常";
    add_to_cmdline: "To the kernel's command line belongs:", "应在内核命令行中添加：";
    drift: "Differences from the file", "与配置文件的差异";
    no_drift: "None: the host is as the file says.", "无：主机与配置文件一致。";
    drift_unknown: "Nothing has been applied yet, so nothing can differ.", "尚未应用配置，无法比较。";
    field: "Field", "字段";
    in_file: "In the file", "配置值";
    actually: "In fact", "实际值";
    version: "Version", "版本";
    licence: "Licence", "许可证";
    host: "Host", "主机";
    system: "System", "系统";

    // The door.
    log_in: "Log in", "登录";
    user_name: "User name", "用户名";
    password: "Password", "密码";
    claim: "Claim this box", "认领本机";
    claim_help: "The one-time code is on the box's screen and in its journal. It makes you its administrator.", "一次性代码显示在本机屏幕上和系统日志中。使用它将成为管理员。";
    code: "One-time code", "一次性代码";
    your_name: "Your user name", "您的用户名";
    name_help: "1 to 32 small letters, digits, dots, dashes and underlines.", "1 到 32 个小写字母、数字、点、连字符或下划线。";
    new_password: "New password", "新密码";
    password_help: "10 characters or more.", "至少 10 个字符。";
    lost_password: "Lost your password?", "忘记密码？";
    lost_help: "Root makes a new code on the box, and it is used here.", "请在本机以 root 生成新代码，并在此使用。";

    // People.
    people: "Users and tokens", "用户与令牌";
    users: "Users", "用户";
    role_word: "Role", "角色";
    may_assign: "may give devices to guests", "可分配设备";
    since: "Since", "创建时间";
    new_user: "New user", "新建用户";
    add: "Add", "添加";
    set_password: "Set a new password", "设置新密码";
    own_password: "Your password", "您的密码";
    old_password: "Password now", "当前密码";
    change_password: "Change password", "更改密码";
    password_changed: "The password is changed; other sessions have ended.", "密码已更改，其他会话已结束。";
    sure_user: "{} can no longer log in, and all tokens of that user end.", "{} 将无法登录，其所有令牌也将失效。";
    tokens: "API tokens", "API 令牌";
    tokens_help: "A program logs in with a token. It can do no more than its user, and ends by itself.", "程序使用令牌登录。令牌权限不超过其用户，并会自动过期。";
    no_tokens: "There are no tokens.", "没有令牌。";
    new_token: "New token", "新建令牌";
    token_name: "What it is for", "用途";
    days: "Days until it ends", "有效天数";
    expires: "Ends", "过期时间";
    user: "User", "用户";
    token_made: "The token {} is made. It is shown this once:", "令牌 {} 已创建，仅显示这一次：";
    sure_token: "The token {} stops working at once.", "令牌 {} 将立即失效。";
    added: "{} is added.", "{} 已添加。";
    changed_done: "{} is changed.", "{} 已更改。";

    // The console.
    console: "Console", "控制台";
    console_help: "Click into the screen, or tab to it, and type. Ctrl+Shift+Escape leaves it.", "点击或切换到屏幕后输入。按 Ctrl+Shift+Escape 离开。";
    console_ended: "The console has ended.", "控制台已结束。";
    console_lost: "The box does not answer. Trying again.", "本机无响应，正在重试。";
    send_line: "Send a line", "发送一行";
    send: "Send", "发送";
    send_key: "Send a key", "发送按键";
    reload: "Load again", "重新加载";
    screen_of: "Screen of {}", "{} 的屏幕";

    // A guest's form.
    edit: "Edit", "编辑";
    edit_guest: "Edit {}", "编辑 {}";
    form_help: "The form makes the text of the file. You see the difference and the plan before anything is saved; comments stay.", "表单会生成配置文本。保存前您将看到差异和计划，注释会保留。";
    vcpus: "vCPUs", "虚拟处理器";
    memory_help: "A size such as 2GiB.", "例如 2GiB。";
    starts_from: "Starts from", "启动方式";
    from_kernel: "A kernel", "内核";
    from_uefi: "UEFI: what is on its disks", "UEFI：磁盘中的系统";
    kernel_path: "Kernel file", "内核文件";
    initrd_path: "Initial RAM disk", "初始内存盘";
    cmdline: "Command line", "内核命令行";
    nics: "Network cards", "网卡";
    nic_on: "Connected to", "连接到";
    network_n: "Network {}", "网络 {}";
    pool_n: "A VF of {}", "{} 的 VF";
    other_card: "as it is in the file", "保持文件中的设置";
    disks: "Disks", "磁盘";
    path: "File", "文件";
    format: "Format", "格式";
    raw: "raw", "原始（raw）";
    qcow2: "qcow2", "qcow2 格式";
    as_disk: "disk", "磁盘";
    as_cd: "CD drive", "光驱";
    seen_as: "Seen as", "类型";
    row_help: "An empty name leaves the row out.", "名称为空的行将被忽略。";
    remove_guest: "Remove from the file", "从文件中删除";
    sure_remove_guest: "The guest {} is taken out of the text. You see the difference before it is saved. Its disks stay.", "虚拟机 {} 将从文本中删除。保存前可查看差异，其磁盘会保留。";
    vcpus_are_no_number: "The number of vCPUs is a whole number.", "虚拟处理器数量必须是整数。";
}
